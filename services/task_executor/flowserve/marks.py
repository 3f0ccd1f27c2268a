"""What a rank does at this moment, readable from outside: how its engine sees that it hangs.

    [since ns << 2 | doing][expected ns]     two u64 in the shared header of a ring

Each word is written at once, and every mark differs from the one before, so that a mark that stays
the same is a rank that stands still.
"""

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Doing(IntEnum):
    LOADING = 0  # also before the first mark
    RESTING = 1  # until it is told something
    WORKING = 2  # by itself
    MEETING = 3  # in a collective, where it may wait for others


_BITS, _DOING = 2, 3
# What takes no time worth a prediction: to read a message, to put a plan into the row table.
MOMENT_NS = 1
_LOADING: Final = int(Doing.LOADING)
_RESTING: Final = int(Doing.RESTING)
_WORKING: Final = int(Doing.WORKING)
_MEETING: Final = int(Doing.MEETING)


@dataclass(frozen=True, slots=True)
class Mark:
    doing: Doing = Doing.LOADING
    since_ns: int = 0  # on this machine's monotonic clock
    expected_seconds: float = 0.0  # of the work, without a sign in between; 0 where nobody knows


class Marks:
    SIZE = 16

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("Q")
        self._since = 0
        self._is_working = False
        self._longest = 0

    @classmethod
    def private(cls) -> "Marks":
        """For a rank that its own process watches."""
        return cls(memoryview(bytearray(cls.SIZE)))

    def close(self) -> None:
        self._words.release()

    def load(self) -> None:
        self._set(_LOADING)

    def rest(self) -> None:
        self._set(_RESTING)

    def work(self, expected_ns: int) -> None:
        """0 where nobody knows how long it will take."""
        self._words[1] = expected_ns
        self._set(_WORKING)

    def meet(self) -> None:
        self._set(_MEETING)

    def go_on(self) -> None:
        """With the work, after a meeting."""
        self._set(_WORKING)

    def take_longest(self) -> int:
        """The longest stretch of work without a sign since this was last asked, in ns."""
        self._note(time.monotonic_ns())
        longest, self._longest = self._longest, 0
        return longest

    def read(self) -> Mark:
        word, expected = self._words[0], self._words[1]
        return Mark(Doing(word & _DOING), word >> _BITS, expected / 1e9)

    def _set(self, doing: int) -> None:
        now = time.monotonic_ns()
        self._note(now)
        self._since, self._is_working = now, doing == _WORKING
        self._words[0] = now << _BITS | doing

    def _note(self, now: int) -> None:
        if self._is_working and now - self._since > self._longest:
            self._longest = now - self._since
