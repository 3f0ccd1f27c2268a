"""Messages of any length over a ring of fixed size: in pieces, each with a byte that says whether
more of the message follows."""

from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from services.task_executor.flowserve.ranks.messages import FromRank, ToRank
from services.task_executor.flowserve.ring import RingFull, RingReader, RingWriter

RING_BYTES = 1 << 20
PIECE_BYTES = 1 << 18
# How long to wait for room before whoever reads is looked after again.
LOOK_SECONDS = 0.25

_LAST, _MORE = b"\0", b"\1"

encode = msgspec.msgpack.Encoder().encode
decode_to_rank: Callable[[bytes], ToRank] = msgspec.msgpack.Decoder(ToRank).decode
decode_from_rank: Callable[[bytes], FromRank] = msgspec.msgpack.Decoder(FromRank).decode


def send(writer: RingWriter, message: bytes, require_reader: Callable[[], None]) -> None:
    """Waits for room; `require_reader` raises where there will never be any."""
    for piece in _pieces(message):
        while True:
            try:
                writer.send(piece, LOOK_SECONDS)
                break
            except RingFull:
                require_reader()


class Messages:
    """Whole messages out of the pieces of one ring."""

    def __init__(self, reader: RingReader) -> None:
        self._reader = reader
        self._begun = bytearray()
        self._whole: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._reader.fileno()

    def wait(self, timeout: float | None) -> bool:
        """Is there something new, at the latest after `timeout` seconds (None: for ever)?"""
        return self._reader.wait(timeout)

    def take(self) -> bytes | None:
        """The next message, without waiting."""
        for piece in self._reader.drain():
            self._begun += piece[1:]
            if piece[:1] == _LAST:
                self._whole.append(bytes(self._begun))
                self._begun.clear()
        return self._whole.popleft() if self._whole else None


def _pieces(message: bytes) -> Iterator[bytes]:
    for first in range(0, len(message), PIECE_BYTES):
        end = first + PIECE_BYTES
        yield (_MORE if end < len(message) else _LAST) + message[first:end]
