"""Blocks in host memory: taken from the system as they are first written, never more."""

import contextlib
import mmap


class DramBlocks:
    def __init__(self, count: int, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._memory = mmap.mmap(-1, count * block_bytes)
        self._view = memoryview(self._memory)

    def view(self, block: int) -> memoryview:
        """Its bytes, to be read or written; let go of it before `close`."""
        first = block * self._block_bytes
        return self._view[first : first + self._block_bytes]

    def close(self) -> None:
        self._view.release()
        with contextlib.suppress(BufferError):  # it goes with the last of its views
            self._memory.close()
