"""The public face of the relational tensor cache, named after Table 1 of the DeepFlow paper.

One node a full block of tokens; a node knows in which tiers its KV lies. A sequence's blocks are a
plain list of blocks of the device, in the order of its tokens. Nothing is moved here: copies are
handed to the ranks (`take_copies`) and answered (`finish_copy`).

Blocks of the device that nobody uses are copied to the next tier before room runs short, so that
they can go at any time without being lost; the DRAM's likewise to the disk.
"""

from services.task_executor.flowserve.messages import KvChange
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.contexts import Context, Contexts, ContextsFull
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier
from services.task_executor.flowserve.rtc.copy_desk import CopyDesk
from services.task_executor.flowserve.rtc.node import CacheNode
from services.task_executor.flowserve.rtc.populates import Populates
from services.task_executor.flowserve.rtc.swap_pauses import SwapPauses
from services.task_executor.flowserve.rtc.tally import KvTally
from services.task_executor.flowserve.rtc.tier_table import TierTable

# Of a tier's blocks, so many are to be had at any time without losing what they hold; less where
# the next tier is small, or what is copied there would push out what was copied just before.
SAFE_SHARE = 0.5
NEXT_TIER_SHARE = 0.5
# Copies under way to one tier in the background, so that little is held by them at a time.
SWAPS_MAX = 64
SWAPS_SHARE = 0.25
# Of the device's blocks that copies may be on their way to: whoever needs none of them goes on,
# also where they never come.
ARRIVING_SHARE = 0.5


class RelationalTensorCache:
    def __init__(
        self, num_blocks: int, block_size: int, *, dram_blocks: int = 0, disk_blocks: int = 0
    ) -> None:
        self._block_size = block_size
        self._table = TierTable((num_blocks, dram_blocks, disk_blocks))
        self._device = self._table.pools[Tier.DEVICE]
        self._copies = CopyDesk(self._table)
        self._populates = Populates(self._table)
        self._pauses = SwapPauses()
        self._contexts = Contexts()
        self.tally = KvTally()
        self._num_pinned = 0
        # Free blocks of the device that steps under way may still write to, and until which step.
        self._written_until: dict[int, int] = {}
        self._arriving_max = max(1, int(ARRIVING_SHARE * num_blocks))
        self.has_tiers = bool(dram_blocks or disk_blocks)

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now; those that only the prefix index knows count too."""
        return self._device.num_available

    @property
    def num_copying(self) -> int:
        """Copies under way; blocks that they hold come back by themselves."""
        return len(self._copies)

    @property
    def num_arriving(self) -> int:
        """Of those, the ones to the device."""
        return self._copies.num_to[Tier.DEVICE]

    def num_idle(self, tier: Tier) -> int:
        """Blocks of a tier that are known and held by nobody."""
        return self._table.pools[tier].num_idle

    def num_used(self, tier: Tier) -> int:
        """Blocks of a tier that somebody holds."""
        pool = self._table.pools[tier]
        return pool.num_blocks - pool.num_available

    def idle_unsafe(self) -> list[int]:
        """The device's blocks that nobody uses and that would be lost, the oldest first."""
        return self._device.unsafe

    # Finding

    def match_by_prefix_token(self, chain: BlockChain, token_ids: list[int]) -> list[int]:
        """The device's blocks of the longest prefix there, valid until the next call that changes.

        Never the whole prompt: at least one token is left to compute, for its logits are needed.
        """
        blocks = []
        for node in self.match_in_tiers(chain, token_ids):
            if not node.is_in(Tier.DEVICE):
                break
            blocks.append(node.blocks[Tier.DEVICE])
        return blocks

    def match_in_tiers(self, chain: BlockChain, token_ids: list[int]) -> list[CacheNode]:
        """The longest prefix that is known in any tier, valid as long; never the whole prompt."""
        chain.extend(token_ids)
        return self._table.index.longest_match(chain, (len(token_ids) - 1) // self._block_size)

    def match_by_id(self, cache_salt: bytes, context_id: str, now: float) -> Context | None:
        """The context of that name; its tokens are then matched like any others."""
        return self._contexts.get(cache_salt, context_id, now)

    # Fetching

    def fetchable(self, nodes: list[CacheNode]) -> list[CacheNode]:
        """As much of a matched prefix as may be on its way to the device at a time."""
        missing = [at for at, node in enumerate(nodes) if not node.is_in(Tier.DEVICE)]
        return nodes[: missing[self._arriving_max]] if len(missing) > self._arriving_max else nodes

    def populate(self, nodes: list[CacheNode], *, spare: int = 0) -> int | None:
        """Begin to bring a matched prefix to the device; ask `query_populate` when it is there.

        None, and nothing changed, where fewer than `spare` blocks would be left for others, or
        too many are under way.
        """
        present = [node for node in nodes if node.is_in(Tier.DEVICE)]
        missing = [node for node in nodes if not node.is_in(Tier.DEVICE)]
        to_copy = [node for node in missing if Tier.DEVICE not in node.arriving]
        if self.num_arriving + len(to_copy) > self._arriving_max:
            return None
        num_idle = sum(not self._device.ref_count(it.blocks[Tier.DEVICE]) for it in present)
        if len(to_copy) + num_idle + spare > self._device.num_available:
            return None
        number = self._populates.begin(present, missing)
        for node in to_copy:
            block = self._table.take(Tier.DEVICE)
            after = self._written_until.pop(block, 0)
            self._copies.begin(node, node.nearest, Tier.DEVICE, block, after=after)
        return number

    def query_populate(self, number: int) -> bool:
        """Is it still under way? What could not be fetched is simply not there afterwards."""
        return number in self._populates

    def cancel_populate(self, number: int) -> None:
        """Nobody waits for it any more. What is under way arrives and may be evicted at once."""
        self._populates.end(number)

    # Allocating

    def alloc_blocks(
        self, matched: list[int], num_tokens: int, *, spare: int = 0
    ) -> list[int] | None:
        """Hold `matched` and as many new blocks as `num_tokens` need beside them.

        None, and nothing changed, where fewer than `spare` blocks would be left for others.
        """
        num_new = -(-num_tokens // self._block_size) - len(matched)
        num_idle = sum(not self._device.ref_count(block) for block in matched)
        if num_new + num_idle + spare > self._device.num_available:
            return None
        for block in matched:
            self._device.hold(block)
        return matched + [self._take() for _ in range(num_new)]

    def append_block(self, blocks: list[int]) -> bool:
        """One more block at the end; False, and nothing changed, where none is left."""
        if not self._device.num_available:
            return False
        blocks.append(self._take())
        return True

    def preserve(self, chain: BlockChain, blocks: list[int], first: int, end: int) -> None:
        """Make blocks `first` .. `end - 1` of a sequence matchable: their KV is computed now."""
        for index in range(first, end):
            identity = chain.identities[index]
            node = self._table.index.get(identity)
            if node is None:
                parent = chain.parent_of(index)
                self._table.add(parent, identity, chain.contents[index], blocks[index])
            elif self._is_wanted(node, chain.contents[index]):
                self._table.attach(node, Tier.DEVICE, blocks[index])

    def free(self, blocks: list[int], *, until: int = 0) -> None:
        """The sequence that held these is gone; what can be matched stays until room is needed.

        `until`: the last step under way that may still write to them. The last block goes first:
        so a prefix is evicted from its end, and never cut in two.
        """
        for block in reversed(blocks):
            if not self._table.release(Tier.DEVICE, block) and until:
                self._written_until[block] = until

    # Copying

    def copy(self, block: int) -> bool:
        """Begin to copy an idle block of the device to the next tier; False where it cannot be."""
        return self._swap(Tier.DEVICE, block)

    def swap_out(self) -> None:
        """Begin what is due of copying idle blocks to where they are kept when room is needed."""
        for tier in (Tier.DEVICE, Tier.DRAM):
            farther = self._table.next_tier(tier)
            if not self._table.pools[tier].num_blocks or farther is None:
                continue
            if self._pauses.take_turn(farther):
                self._keep_safe(tier, farther)

    def take_copies(self, landed: int) -> list[BlockCopy]:
        """What the ranks are to copy now, given the last step that was answered; each told once."""
        return self._copies.take_ready(landed)

    def finish_copy(self, done: CopyDone) -> BlockCopy:
        copy, node = self._copies.finish(done)
        self.tally.copies[copy.source, copy.target, done.is_good] += 1
        if copy.target is Tier.DEVICE:
            self._populates.arrived(node)
        else:
            self._pauses.ended(copy.target, is_good=done.is_good)
        return copy

    # Contexts

    def keep_context(self, context: Context, *, pin_room: int | None, now: float) -> None:
        """Remember it under its name, in place of an older one. Raises ContextsFull.

        `pin_room`: how many blocks of the device may be pinned in all; None does not pin it.
        """
        self.drop_expired(now)
        self._contexts.require_room(context)
        old = self._contexts.get(context.cache_salt, context.context_id, now)
        if pin_room is not None:
            left = pin_room - self._num_pinned + (len(old.pinned) if old else 0)
            self._pin(context, left)
        if replaced := self._contexts.put(context):
            self._unpin(replaced)

    def drop_context(self, cache_salt: bytes, context_id: str) -> bool:
        """False where there is none of that name."""
        context = self._contexts.remove(cache_salt, context_id)
        if context is not None:
            self._unpin(context)
        return context is not None

    def drop_expired(self, now: float) -> None:
        for context in self._contexts.take_expired(now) if len(self._contexts) else ():
            self._unpin(context)

    def list_contexts(self, cache_salt: bytes, now: float) -> list[Context]:
        return self._contexts.of_tenant(cache_salt, now)

    def list_all_contexts(self, now: float) -> list[Context]:
        """Of every tenant."""
        return [context for context in self._contexts if now < context.expires]

    def blocks_of(self, context: Context) -> int:
        """How many blocks it takes in all tiers together."""
        nodes = self._table.index.longest_match(context.chain, len(context.chain.identities))
        return sum(node.is_in(tier) for node in nodes for tier in Tier)

    # Looking

    def drain_changes(self) -> list[KvChange]:
        """What became known and what was forgotten since the last call.

        A block that has left the device and lies in another tier is still known.
        """
        return self._table.changes.drain()

    def check(self, holders: list[list[int]]) -> None:
        """Assert every invariant, given the blocks of all sequences that hold any."""
        pinned = [context.pinned for context in self._contexts]
        assert sum(map(len, pinned)) == self._num_pinned
        users = [*holders, *pinned, self._populates.held()]
        for tier in Tier:
            held: dict[int, int] = {}
            for blocks in (*(users if tier is Tier.DEVICE else ()), self._copies.held(tier)):
                for block in blocks:
                    held[block] = held.get(block, 0) + 1
            self._table.pools[tier].check(held)
            for block, count in held.items():
                is_known = self._table.node_at(tier, block) is not None
                assert count == 1 or is_known, f"{tier.name} {block} is shared but unknown"
        self._table.check()

    def _is_wanted(self, node: CacheNode, content: bytes) -> bool:
        """Is a block that was computed again the first of its node on the device?"""
        is_there = node.is_in(Tier.DEVICE) or Tier.DEVICE in node.arriving
        return not is_there and node.content == content

    def _take(self) -> int:
        block = self._table.take(Tier.DEVICE)
        # Steps run in the order in which they were planned: whoever computes comes later anyway.
        self._written_until.pop(block, None)
        return block

    def _keep_safe(self, tier: Tier, farther: Tier) -> None:
        pool, next_pool = self._table.pools[tier], self._table.pools[farther]
        wanted = min(SAFE_SHARE * pool.num_blocks, NEXT_TIER_SHARE * next_pool.num_blocks)
        room = min(SWAPS_MAX, max(1, int(SWAPS_SHARE * pool.num_blocks)))
        while self._copies.num_to[farther] < room:
            block = pool.oldest_unsafe
            if block is None or pool.num_without_loss + self._copies.num_to[farther] >= wanted:
                return
            if not self._swap(tier, block):
                return

    def _swap(self, tier: Tier, block: int) -> bool:
        """An idle block that is nowhere farther; so it stays the only copy of it under way."""
        farther = self._table.next_tier(tier)
        node = self._table.node_at(tier, block)
        if farther is None or node is None or node.is_in(farther) or farther in node.arriving:
            return False
        if not self._table.pools[farther].num_available:
            return False
        self._copies.begin(node, tier, farther, self._table.take(farther))
        return True

    def _pin(self, context: Context, room: int) -> None:
        nodes = self._table.index.longest_match(context.chain, len(context.chain.identities))
        blocks = [node.blocks[Tier.DEVICE] for node in nodes if node.is_in(Tier.DEVICE)]
        if len(blocks) < len(context.chain.identities):
            raise ContextsFull("the device had no room to keep all of it")
        if len(blocks) > room:
            raise ContextsFull(
                f"it takes {len(blocks)} blocks of the device, and {max(0, room)} can be pinned"
            )
        for block in blocks:
            self._device.hold(block)
        context.pinned, context.is_pinned = blocks, True
        self._num_pinned += len(blocks)

    def _unpin(self, context: Context) -> None:
        for block in reversed(context.pinned):
            self._table.release(Tier.DEVICE, block)
        self._num_pinned -= len(context.pinned)
        context.pinned = []
