"""The public face of the relational tensor cache, named after Table 1 of the DeepFlow paper.

One tier exists: the device. `match_by_id`, `populate`, `query_populate` and `copy` come with the
second tier. A sequence's blocks are a plain list, in the order of its tokens.
"""

from services.task_executor.flowserve.messages import KvChange
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.block_pool import BlockPool
from services.task_executor.flowserve.rtc.change_log import ChangeLog
from services.task_executor.flowserve.rtc.prefix_index import PrefixIndex


class RelationalTensorCache:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._index = PrefixIndex()
        self._changes = ChangeLog()

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now; those that only the prefix index knows count too."""
        return self._pool.num_available

    def match_by_prefix_token(self, chain: BlockChain, token_ids: list[int]) -> list[int]:
        """The blocks that hold the longest known prefix, valid until the next call that changes.

        Never the whole prompt: at least one token is left to compute, for its logits are needed.
        """
        chain.extend(token_ids)
        return self._index.longest_match(chain, (len(token_ids) - 1) // self._block_size)

    def alloc_blocks(
        self, matched: list[int], num_tokens: int, *, spare: int = 0
    ) -> list[int] | None:
        """Hold `matched` and as many new blocks as `num_tokens` need beside them.

        None, and nothing changed, where fewer than `spare` blocks would be left for others.
        """
        num_new = -(-num_tokens // self._block_size) - len(matched)
        num_idle = sum(not self._pool.ref_count(block) for block in matched)
        if num_new + num_idle + spare > self._pool.num_available:
            return None
        for block in matched:
            self._pool.hold(block)
        return matched + [self._take() for _ in range(num_new)]

    def append_block(self, blocks: list[int]) -> bool:
        """One more block at the end; False, and nothing changed, where none is left."""
        if not self._pool.num_available:
            return False
        blocks.append(self._take())
        return True

    def preserve(self, chain: BlockChain, blocks: list[int], first: int, end: int) -> None:
        """Make blocks `first` .. `end - 1` of a sequence matchable: their KV is computed now."""
        for index in range(first, end):
            identity = chain.identities[index]
            if self._index.add(identity, chain.contents[index], blocks[index]):
                self._changes.stored(chain.parent_of(index), identity)

    def free(self, blocks: list[int]) -> None:
        """The sequence that held these is gone; what can be matched stays until room is needed.

        The last block goes first: so a prefix is evicted from its end, and never cut in two.
        """
        for block in reversed(blocks):
            self._pool.release(block, keep=self._index.knows_block(block))

    def drain_changes(self) -> list[KvChange]:
        """What entered and left the prefix index since the last call."""
        return self._changes.drain()

    def check(self, holders: list[list[int]]) -> None:
        """Assert every invariant, given the blocks of all sequences that hold any."""
        held: dict[int, int] = {}
        for blocks in holders:
            for block in blocks:
                held[block] = held.get(block, 0) + 1
        self._pool.check(held)
        self._index.check()
        for block, count in held.items():
            assert count == 1 or self._index.knows_block(block), f"{block} is shared but unknown"

    def _take(self) -> int:
        if not self._pool.has_free:
            self._changes.removed(self._index.remove_block(self._pool.evict()))
        return self._pool.take()
