"""A ring of bytes between two processes, one of which writes and one of which reads.

    memory  [header: one page, holds step clock and marks][capacity bytes of records, wrapping]
    record  [length u32][bytes]
    filled  eventfd: records written and not yet read; readable when there is one
    freed   eventfd: bytes read and not yet reused; readable when there is room again

The memory is a memfd, so nothing is left behind whoever dies. Each side keeps its own position and
learns from the counters how far it may go. A counter is changed and read by system calls, and
those order the memory around them on every CPU, where polling an index would not.
"""

import mmap
import os
import select
import struct
from collections.abc import Sequence

import msgspec

from services.task_executor.flowserve.marks import Marks
from services.task_executor.flowserve.messages import FromEngine, ToEngine
from services.task_executor.flowserve.step_clock import StepClock

DEFAULT_CAPACITY_BYTES = 4 << 20
HEADER_BYTES = mmap.PAGESIZE
_MARKS_AT = 64

_LENGTH = struct.Struct("<I")
_COUNTER_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


class RingFull(RuntimeError):
    """The reader has not made room in time; nothing was written."""


class RecordTooLarge(ValueError):
    """The record would not even fit an empty ring."""


class Ring:
    """The shared memory and its two counters; hand `fds` to the other process."""

    def __init__(self, memory_fd: int, filled_fd: int, freed_fd: int) -> None:
        self.fds = (memory_fd, filled_fd, freed_fd)
        self.memory = mmap.mmap(memory_fd, 0)
        self.capacity = len(self.memory) - HEADER_BYTES
        self.step_clock = StepClock(memoryview(self.memory)[: StepClock.SIZE])
        self.marks = Marks(memoryview(self.memory)[_MARKS_AT : _MARKS_AT + Marks.SIZE])

    @property
    def filled_fd(self) -> int:
        return self.fds[1]

    @classmethod
    def create(cls, capacity: int = DEFAULT_CAPACITY_BYTES) -> "Ring":
        if capacity <= _LENGTH.size:
            raise ValueError(f"capacity is {capacity} bytes, but a record needs more than that")
        memory_fd = os.memfd_create("deepflow-ring")
        os.ftruncate(memory_fd, HEADER_BYTES + capacity)
        return cls(memory_fd, os.eventfd(0, _COUNTER_FLAGS), os.eventfd(0, _COUNTER_FLAGS))

    @classmethod
    def open(cls, fds: Sequence[int]) -> "Ring":
        """The ring that another process created, from the descriptors it passed on."""
        if len(fds) != 3:
            raise ValueError(f"a ring is three file descriptors (memory, filled, freed), not {fds}")
        return cls(*fds)

    def writer(self) -> "RingWriter":
        """At most one over the life of the ring; likewise `reader`."""
        return RingWriter(self)

    def reader(self) -> "RingReader":
        return RingReader(self)

    def close(self) -> None:
        self.step_clock.close()
        self.marks.close()
        self.memory.close()
        for fd in self.fds:
            os.close(fd)


class RingWriter:
    def __init__(self, ring: Ring) -> None:
        self._memory = ring.memory
        self._capacity = ring.capacity
        _, self._filled_fd, self._freed_fd = ring.fds
        self._position = 0
        self._room = ring.capacity

    def fileno(self) -> int:
        """Readable when the reader has made room since the last send."""
        return self._freed_fd

    def send(self, record: bytes, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds (None: for ever) for room. All is written or nothing."""
        size = _LENGTH.size + len(record)
        if size > self._capacity:
            raise RecordTooLarge(
                f"a record of {len(record)} bytes does not fit a ring of {self._capacity}"
            )
        self._await_room(size, timeout)
        self._write(_LENGTH.pack(len(record)) + record)
        self._room -= size
        os.eventfd_write(self._filled_fd, 1)

    def _await_room(self, size: int, timeout: float | None) -> None:
        while self._room < size:
            freed = _read_counter(self._freed_fd)
            if not freed and not wait_readable((self._freed_fd,), timeout):
                raise RingFull(
                    f"the ring has room for {self._room} of {size} bytes and its reader made "
                    f"none for {timeout} s"
                )
            self._room += freed

    def _write(self, data: bytes) -> None:
        head = min(len(data), self._capacity - self._position)
        start = HEADER_BYTES + self._position
        self._memory[start : start + head] = data[:head]
        if head < len(data):
            self._memory[HEADER_BYTES : HEADER_BYTES + len(data) - head] = data[head:]
        self._position = (self._position + len(data)) % self._capacity


class RingReader:
    def __init__(self, ring: Ring) -> None:
        self._memory = ring.memory
        self._capacity = ring.capacity
        _, self._filled_fd, self._freed_fd = ring.fds
        self._position = 0

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._filled_fd

    def drain(self) -> list[bytes]:
        """Every record there is, without waiting."""
        count = _read_counter(self._filled_fd)
        if not count:
            return []
        records = [self._read_record() for _ in range(count)]
        os.eventfd_write(self._freed_fd, sum(map(len, records)) + count * _LENGTH.size)
        return records

    def wait(self, timeout: float | None) -> bool:
        """Is there something to drain, at the latest after `timeout` seconds (None: for ever)?"""
        return wait_readable((self._filled_fd,), timeout)

    def _read_record(self) -> bytes:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return self._read(length)

    def _read(self, size: int) -> bytes:
        start = HEADER_BYTES + self._position
        head = min(size, self._capacity - self._position)
        data = self._memory[start : start + head]
        if head < size:
            data += self._memory[HEADER_BYTES : HEADER_BYTES + size - head]
        self._position = (self._position + size) % self._capacity
        return data


def _read_counter(fd: int) -> int:
    """Take all that was counted; 0 where nothing was."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def wait_readable(fds: Sequence[int], timeout: float | None) -> bool:
    """Is one of them readable, at the latest after `timeout` seconds (None: for ever)?"""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
