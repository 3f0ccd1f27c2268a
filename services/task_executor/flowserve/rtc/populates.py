"""Prefixes on their way to the device, each asked for by somebody who waits for all of it."""

from dataclasses import dataclass, field

from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.node import CacheNode
from services.task_executor.flowserve.rtc.tier_table import TierTable


@dataclass(slots=True)
class _Populate:
    missing: set[CacheNode]
    held: list[int] = field(default_factory=list)  # blocks of the device that must not go again


class Populates:
    def __init__(self, table: TierTable) -> None:
        self._table = table
        self._numbers = 0
        self._under_way: dict[int, _Populate] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._under_way

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, present: list[CacheNode], missing: list[CacheNode]) -> int:
        """Hold what is on the device already; call before a block is taken for what is not."""
        self._numbers += 1
        populate = self._under_way[self._numbers] = _Populate(set(missing))
        for node in present:
            self._hold(populate, node)
        return self._numbers

    def arrived(self, node: CacheNode) -> None:
        """A copy of it to the device has ended, well or not."""
        for number, populate in list(self._under_way.items()):
            if node not in populate.missing:
                continue
            populate.missing.remove(node)
            if node.is_in(Tier.DEVICE):
                self._hold(populate, node)
            if not populate.missing:
                self.end(number)

    def end(self, number: int) -> None:
        """Nobody waits for it any more: what came stays while there is room. Unknown is fine."""
        populate = self._under_way.pop(number, None)
        if populate is not None:
            for block in reversed(populate.held):
                self._table.release(Tier.DEVICE, block)

    def held(self) -> list[int]:
        return [block for it in self._under_way.values() for block in it.held]

    def _hold(self, populate: _Populate, node: CacheNode) -> None:
        block = node.blocks[Tier.DEVICE]
        self._table.pools[Tier.DEVICE].hold(block)
        populate.held.append(block)
