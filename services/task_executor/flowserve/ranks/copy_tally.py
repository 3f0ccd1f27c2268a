"""The copies that every rank is to do: told few at a time, done when all ranks have answered."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone

# Told and not done. Of at most some 600 bytes each: an eighth of a ring.
COPIES_TOLD_MAX = 200


@dataclass(slots=True)
class _Count:
    missing: int  # ranks
    is_good: bool = True
    seconds: float = 0.0


class CopyTally:
    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._untold: deque[BlockCopy] = deque()
        self._told: dict[int, _Count] = {}  # by number of the copy

    def add(self, copies: Sequence[BlockCopy]) -> None:
        self._untold += copies

    def take_due(self) -> list[BlockCopy]:
        """Those that the ranks are to be told of now, each once."""
        count = min(len(self._untold), COPIES_TOLD_MAX - len(self._told))
        due = [self._untold.popleft() for _ in range(count)]
        self._told |= {copy.number: _Count(self._ranks) for copy in due}
        return due

    def take_answer(self, done: CopyDone) -> CopyDone | None:
        """Of one rank; with the last one it is everybody's.

        A block of which one share is bad is no block, and it took as long as the slowest did.
        """
        count = self._told[done.number]
        count.missing -= 1
        count.is_good &= done.is_good
        count.seconds = max(count.seconds, done.seconds)
        if count.missing:
            return None
        del self._told[done.number]
        return CopyDone(done.number, count.is_good, count.seconds)
