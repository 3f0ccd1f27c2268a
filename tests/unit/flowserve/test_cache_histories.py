"""Random use of the cache against a model that knows what was really written to each block."""

from typing import TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache

BLOCK_SIZE = 2
NUM_BLOCKS = 12

Content: TypeAlias = tuple[bytes, tuple[int, ...]]  # whose, and all tokens up to the block's end


class Holder:
    def __init__(self, salt: bytes, tokens: list[int], chain: BlockChain) -> None:
        self.salt = salt
        self.tokens = tokens
        self.chain = chain
        self.blocks: list[int] = []
        self.preserved = 0

    def content(self, index: int) -> Content:
        return self.salt, tuple(self.tokens[: (index + 1) * BLOCK_SIZE])


class CacheHistories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = RelationalTensorCache(NUM_BLOCKS, BLOCK_SIZE)
        self.holders: list[Holder] = []
        self.written: dict[int, Content] = {}
        self.known: set[bytes] = set()

    @rule(
        salt=st.sampled_from([b"a", b"b"]),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14),
    )
    def begin(self, salt: bytes, tokens: list[int]) -> None:
        holder = Holder(salt, tokens, BlockChain(salt, BLOCK_SIZE))
        matched = self.cache.match_by_prefix_token(holder.chain, tokens)
        assert len(matched) * BLOCK_SIZE < len(tokens)
        for index, block in enumerate(matched):
            assert self.written[block] == holder.content(index), "foreign KV is matched"
        available = self.cache.num_available
        blocks = self.cache.alloc_blocks(matched, len(tokens))
        if blocks is None:
            assert self.cache.num_available == available
            return
        assert blocks[: len(matched)] == matched
        holder.blocks, holder.preserved = blocks, len(matched)
        for index in range(len(matched), len(blocks)):
            self.written[blocks[index]] = holder.content(index)
        self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        if len(holder.tokens) == len(holder.blocks) * BLOCK_SIZE:
            available = self.cache.num_available
            if not self.cache.append_block(holder.blocks):
                assert available == 0
                return
        holder.tokens.append(token)
        self.written[holder.blocks[-1]] = holder.content(len(holder.blocks) - 1)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def preserve(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        end = data.draw(st.integers(holder.preserved, len(holder.tokens) // BLOCK_SIZE))
        holder.chain.extend(holder.tokens)
        self.cache.preserve(holder.chain, holder.blocks, holder.preserved, end)
        holder.preserved = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.cache.free(self.holders.pop(index).blocks)

    @invariant()
    def every_block_is_somewhere_once(self) -> None:
        self.cache.check([holder.blocks for holder in self.holders])
        held = {block for holder in self.holders for block in holder.blocks}
        assert self.cache.num_available == NUM_BLOCKS - 1 - len(held)

    @invariant()
    def nobody_writes_to_what_another_holds(self) -> None:
        for holder in self.holders:
            for index, block in enumerate(holder.blocks):
                assert self.written[block] == holder.content(index)

    @invariant()
    def changes_tell_the_whole_story(self) -> None:
        for change in self.cache.drain_changes():
            identities = set(change.identities)
            assert identities.isdisjoint(self.known) if change.stored else identities <= self.known
            self.known ^= identities

    def teardown(self) -> None:
        for holder in self.holders:
            self.cache.free(holder.blocks)
        self.cache.check([])
        assert self.cache.num_available == NUM_BLOCKS - 1


TestCacheHistories = CacheHistories.TestCase
TestCacheHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
