"""The fingerprints of an emulated accelerator's blocks, and the time its host link would take."""

import time

import numpy as np

from services.task_executor.devices.emulated.fingerprints import FingerprintCache

# Shorter waits are made up for by a later one: the system's sleep is not more exact.
SLEEP_MIN_SECONDS = 300e-6


class EmulatedBlocks:
    def __init__(self, cache: FingerprintCache, seconds_per_block: float) -> None:
        self._cells = cache.cells
        self.block_bytes = cache.cells[0].nbytes
        self._seconds_per_block = seconds_per_block
        self._free_at = {"read": 0.0, "write": 0.0}  # the link carries both ways at once

    def read(self, block: int, into: memoryview) -> None:
        np.frombuffer(into, dtype=np.uint64)[:] = self._cells[block]
        self._wait("read")

    def write(self, block: int, data: memoryview) -> None:
        self._cells[block] = np.frombuffer(data, dtype=np.uint64)
        self._wait("write")

    def _wait(self, direction: str) -> None:
        now = time.monotonic()
        free_at = max(now, self._free_at[direction]) + self._seconds_per_block
        self._free_at[direction] = free_at
        if free_at - now >= SLEEP_MIN_SECONDS:
            time.sleep(free_at - now)
