"""The blocks of one device, each in exactly one of three states.

    free     nobody's; its content is garbage
    in use   one or more sequences hold it
    idle     no sequence holds it, but the prefix index knows it; least recently used goes first

The trash block is in none of them: it is never handed out.
"""

from collections import OrderedDict

from services.task_executor.flowserve.plan import TRASH_BLOCK


class BlockPool:
    def __init__(self, num_blocks: int) -> None:
        self._ref_counts = [0] * num_blocks
        # A stack: the lowest numbers go first.
        self._free = [block for block in reversed(range(num_blocks)) if block != TRASH_BLOCK]
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out, counting the idle ones it would evict."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def take(self) -> int:
        """A free block, held once from now on."""
        block = self._free.pop()
        self._ref_counts[block] = 1
        return block

    def evict(self) -> int:
        """Free the idle block that was used least recently; the caller forgets its content."""
        block, _ = self._idle.popitem(last=False)
        self._free.append(block)
        return block

    def hold(self, block: int) -> None:
        """One more sequence uses a block that is idle or in use."""
        if self._ref_counts[block] == 0:
            del self._idle[block]
        self._ref_counts[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """One sequence fewer uses it; after the last, `keep` makes it idle instead of free."""
        count = self._ref_counts[block] - 1
        assert count >= 0, f"block {block} is released more often than it was held"
        self._ref_counts[block] = count
        if count:
            return
        if keep:
            self._idle[block] = None
        else:
            self._free.append(block)

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def check(self, held: dict[int, int]) -> None:
        """Assert that every block is in one state and held as often as `held` says."""
        free, idle = set(self._free), set(self._idle)
        in_use = {block for block, count in enumerate(self._ref_counts) if count}
        assert len(free) == len(self._free), "a block is free twice"
        assert not (free & idle or free & in_use or idle & in_use), "a block has two states"
        assert free | idle | in_use == set(range(len(self._ref_counts))) - {TRASH_BLOCK}
        assert held == {block: self._ref_counts[block] for block in in_use}
