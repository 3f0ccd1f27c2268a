"""Which blocks of which tier hold which nodes; every change of that goes through here."""

from services.task_executor.flowserve.plan import TRASH_BLOCK
from services.task_executor.flowserve.rtc.block_pool import BlockPool
from services.task_executor.flowserve.rtc.change_log import ChangeLog
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.node import NOWHERE, CacheNode
from services.task_executor.flowserve.rtc.prefix_index import PrefixIndex


class TierTable:
    def __init__(self, num_blocks: tuple[int, int, int]) -> None:
        """By tier; a tier of no blocks does not exist."""
        reserved = {Tier.DEVICE: (TRASH_BLOCK,)}
        self.pools = [BlockPool(num_blocks[tier], reserved.get(tier, ())) for tier in Tier]
        self._nodes: list[dict[int, CacheNode]] = [{} for _ in Tier]
        self.index = PrefixIndex()
        self.changes = ChangeLog()

    def next_tier(self, tier: Tier) -> Tier | None:
        """Where blocks go that leave it; None where they are lost."""
        farther = (it for it in Tier if it > tier and self.pools[it].num_blocks)
        return next(farther, None)

    def node_at(self, tier: Tier, block: int) -> CacheNode | None:
        return self._nodes[tier].get(block)

    def take(self, tier: Tier) -> int:
        """A block of that tier, held once; what was idle there longest gives way."""
        pool = self.pools[tier]
        if not pool.has_free:
            block = pool.evict()
            node = self._nodes[tier].pop(block)
            node.blocks[tier] = NOWHERE
            self._settle(node)
        return pool.take()

    def release(self, tier: Tier, block: int) -> bool:
        """One fewer holds it; answers whether the index still knows it."""
        is_known = block in self._nodes[tier]
        self.pools[tier].release(block, keep=is_known)
        return is_known

    def add(self, parent: bytes, identity: bytes, content: bytes, block: int) -> None:
        """A prefix that is new: its KV lies in that block of the device."""
        self.attach(self.index.add(identity, content), Tier.DEVICE, block)
        self.changes.stored(parent, identity)

    def attach(self, node: CacheNode, tier: Tier, block: int) -> None:
        """The block, which somebody holds, has the node's content from now on."""
        assert not node.is_in(tier), "a node has two blocks in one tier"
        node.blocks[tier] = block
        self._nodes[tier][block] = node
        self._settle(node)

    def detach(self, node: CacheNode, tier: Tier) -> None:
        """The block does not have the node's content after all."""
        block = node.blocks[tier]
        del self._nodes[tier][block]
        node.blocks[tier] = NOWHERE
        if not self.pools[tier].ref_count(block):
            self.pools[tier].drop(block)
        self._settle(node)

    def check(self) -> None:
        for node in self.index:
            assert node.is_somewhere, "a node without a block"
        for tier in Tier:
            pool, nodes = self.pools[tier], self._nodes[tier]
            assert nodes == {it.blocks[tier]: it for it in self.index if it.is_in(tier)}
            for block, node in nodes.items():
                assert pool.is_safe(block) == node.is_safe_without(tier)

    def _settle(self, node: CacheNode) -> None:
        """After a block of it came or went: what is safe where, and whether it is known at all."""
        for tier in Tier:
            if node.is_in(tier):
                self.pools[tier].mark(node.blocks[tier], is_safe=node.is_safe_without(tier))
        if not node.is_somewhere:
            self.index.remove(node)
            self.changes.removed(node.identity)
