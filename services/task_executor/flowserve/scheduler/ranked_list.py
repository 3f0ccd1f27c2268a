"""Sequences in the order of their rank."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from services.task_executor.flowserve.scheduler.sequence import Sequence

_rank = attrgetter("rank")


class RankedList:
    """Sorted rather than a heap: any member can leave at any time without a trace."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def first(self) -> Sequence:
        return self._sequences[0]

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_rank)

    def pop_first(self) -> Sequence:
        return self._sequences.pop(0)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._sequences, sequence.rank, key=_rank)
        assert self._sequences[index] is sequence
        del self._sequences[index]
