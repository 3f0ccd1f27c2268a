"""Who holds which row of the batch, and which rows the executors must be told to forget."""

from services.task_executor.flowserve.scheduler.sequence import Sequence


class Rows:
    def __init__(self, count: int) -> None:
        self._holders: list[Sequence | None] = [None] * count
        self._free = list(reversed(range(count)))
        self._released: list[int] = []  # not yet told

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def take(self) -> int:
        return self._free.pop()

    def hold(self, sequence: Sequence) -> None:
        self._holders[sequence.row] = sequence

    def holder(self, row: int) -> Sequence | None:
        return self._holders[row]

    def release(self, row: int) -> None:
        self._holders[row] = None
        self._free.append(row)
        self._released.append(row)

    def drain_released(self) -> list[int]:
        released, self._released = self._released, []
        return released

    def tell_again(self, rows: list[int]) -> None:
        """Nobody knows whether the executors heard of these."""
        self._released = list(dict.fromkeys(rows + self._released))

    def check(self, running: list[Sequence]) -> None:
        assert [s for s in self._holders if s] == sorted(running, key=lambda s: s.row)
        rows = sorted(self._free + [sequence.row for sequence in running])
        assert rows == list(range(len(self._holders))), "a row is lost or used twice"
