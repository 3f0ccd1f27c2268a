"""The step that runs now, readable from outside: how the shell sees that an engine hangs.

    [step u64][started f64][predicted f64][checksum u64]     in the shared header of a ring

No lock and no memory barrier joins the two sides. A torn read fails its checksum and is repeated.
"""

import struct
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

_FIELDS = struct.Struct("<Qdd")
_CHECKSUM = struct.Struct("<Q")
_READ_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class StepInProgress:
    """What the clock shows; seconds are those of this machine's monotonic clock."""

    step: int
    started_seconds: float
    predicted_seconds: float


class StepClock:
    SIZE = _FIELDS.size + _CHECKSUM.size

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def close(self) -> None:
        self._memory.release()

    def begin(self, step: int, started_seconds: float, predicted_seconds: float) -> None:
        self._write(_FIELDS.pack(step, started_seconds, predicted_seconds))

    def end(self) -> None:
        self._write(bytes(_FIELDS.size))

    def read(self) -> StepInProgress | None:
        """None between steps, and where every attempt met a write: then a step has just changed."""
        for _ in range(_READ_ATTEMPTS):
            record = bytes(self._memory)
            fields = record[: _FIELDS.size]
            if record[_FIELDS.size :] == _checksum(fields):
                step, started, predicted = _FIELDS.unpack(fields)
                return StepInProgress(step, started, predicted) if started else None
        return None

    def _write(self, fields: bytes) -> None:
        self._memory[:] = fields + _checksum(fields)


def _checksum(fields: bytes) -> bytes:
    return _CHECKSUM.pack(xxh3_64_intdigest(fields))
