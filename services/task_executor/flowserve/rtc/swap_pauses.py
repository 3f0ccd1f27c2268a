"""How long nothing is put away in a tier that does not take it: a full disk stays full a while."""

from services.task_executor.flowserve.rtc.copies import Tier

FIRST = 8  # turns; twice as many after each further failure
MOST = 1024


class SwapPauses:
    def __init__(self) -> None:
        self._lengths: dict[Tier, int] = {}
        self._left: dict[Tier, int] = {}

    def ended(self, target: Tier, *, is_good: bool) -> None:
        if is_good:
            self._lengths.pop(target, None)
        elif not self._left.get(target):  # those that failed together count once
            length = min(MOST, 2 * self._lengths.get(target, FIRST // 2))
            self._lengths[target] = self._left[target] = length

    def take_turn(self, target: Tier) -> bool:
        """May this turn be used?"""
        left = self._left.get(target, 0)
        if left:
            self._left[target] = left - 1
        return not left
