"""Copies between tiers: begun, handed out, answered.

Both ends are held until the answer, so that neither is evicted or overwritten.
"""

from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier
from services.task_executor.flowserve.rtc.node import CacheNode
from services.task_executor.flowserve.rtc.tier_table import TierTable


class CopyDesk:
    def __init__(self, table: TierTable) -> None:
        self._table = table
        self._numbers = 0
        self._waiting: list[tuple[BlockCopy, int]] = []  # and after which step it may begin
        self._under_way: dict[int, tuple[BlockCopy, CacheNode]] = {}  # those waiting too
        self.num_to = [0] * len(Tier)  # under way, by target

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(
        self, node: CacheNode, source: Tier, target: Tier, target_block: int, *, after: int = 0
    ) -> None:
        """From a tier that has it to a block that was taken for it in another."""
        block = node.blocks[source]
        self._table.pools[source].hold(block)
        self._numbers += 1
        copy = BlockCopy(
            self._numbers, source, block, target, target_block, node.identity, node.content
        )
        self._under_way[copy.number] = (copy, node)
        self._waiting.append((copy, after))
        self.num_to[target] += 1
        node.arriving.add(target)

    def take_ready(self, landed: int) -> list[BlockCopy]:
        """Those that may begin once step `landed` was answered, each once."""
        if not self._waiting:
            return []
        ready = [copy for copy, after in self._waiting if after <= landed]
        self._waiting = [it for it in self._waiting if it[1] > landed]
        return ready

    def finish(self, done: CopyDone) -> tuple[BlockCopy, CacheNode]:
        """Let go of both ends. The target has the content then, where the copy was good."""
        copy, node = self._under_way.pop(done.number)
        self.num_to[copy.target] -= 1
        node.arriving.discard(copy.target)
        if done.is_good:
            self._table.attach(node, copy.target, copy.target_block)
        self._table.release(copy.target, copy.target_block)
        self._table.release(copy.source, copy.source_block)
        if not done.is_good and copy.source is Tier.DISK:
            self._table.detach(node, Tier.DISK)  # whatever is there, it is not this block
        return copy, node

    def held(self, tier: Tier) -> list[int]:
        """The blocks of a tier that copies hold, as often as they do."""
        copies = [copy for copy, _ in self._under_way.values()]
        sources = [it.source_block for it in copies if it.source is tier]
        return sources + [it.target_block for it in copies if it.target is tier]
