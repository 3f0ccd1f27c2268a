"""The blocks of one tier, each in exactly one of three states.

    free     nobody's; its content is garbage
    in use   a sequence, a pinned context or a copy under way holds it, perhaps several of them
    idle     nobody holds it, but the prefix index knows it: kept until room is needed

Idle blocks are safe or not: those whose content lies in a farther tier too can be handed out
without any loss and go first; in either group the least recently used goes first.
"""

from collections import OrderedDict
from collections.abc import Collection


class BlockPool:
    def __init__(self, num_blocks: int, reserved: Collection[int] = ()) -> None:
        """`reserved` blocks are in no state: they are never handed out."""
        self._ref_counts = [0] * num_blocks
        self._reserved = frozenset(reserved)
        # A stack: the lowest numbers go first.
        self._free = [it for it in reversed(range(num_blocks)) if it not in self._reserved]
        self._safe: set[int] = set()  # of those in use and idle
        self._idle_safe: OrderedDict[int, None] = OrderedDict()
        self._idle_unsafe: OrderedDict[int, None] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        return len(self._ref_counts) - len(self._reserved)

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out, counting the idle ones it would evict."""
        return len(self._free) + self.num_idle

    @property
    def num_idle(self) -> int:
        return len(self._idle_safe) + len(self._idle_unsafe)

    @property
    def num_without_loss(self) -> int:
        """Of the available ones, those whose content is nowhere missed."""
        return len(self._free) + len(self._idle_safe)

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    @property
    def unsafe(self) -> list[int]:
        """The idle blocks whose content would be lost, the oldest first."""
        return list(self._idle_unsafe)

    @property
    def oldest_unsafe(self) -> int | None:
        """The idle block whose content would be lost first."""
        return next(iter(self._idle_unsafe), None)

    def take(self) -> int:
        """A free block, held once from now on."""
        block = self._free.pop()
        self._ref_counts[block] = 1
        self._safe.discard(block)
        return block

    def evict(self) -> int:
        """Free the idle block that is missed least; the caller forgets its content."""
        block, _ = (self._idle_safe or self._idle_unsafe).popitem(last=False)
        self._free.append(block)
        return block

    def hold(self, block: int) -> None:
        """One more uses a block that is idle or in use."""
        if self._ref_counts[block] == 0:
            del self._idle_of(block)[block]
        self._ref_counts[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """One fewer uses it; after the last, `keep` makes it idle instead of free."""
        count = self._ref_counts[block] - 1
        assert count >= 0, f"block {block} is released more often than it was held"
        self._ref_counts[block] = count
        if count:
            return
        if keep:
            self._idle_of(block)[block] = None
        else:
            self._free.append(block)

    def drop(self, block: int) -> None:
        """Free an idle block out of turn."""
        del self._idle_of(block)[block]
        self._free.append(block)

    def mark(self, block: int, *, is_safe: bool) -> None:
        """Whether the content of a block in use or idle lies in a farther tier too."""
        if is_safe == (block in self._safe):
            return
        is_idle = self._ref_counts[block] == 0
        if is_idle:
            del self._idle_of(block)[block]
        (self._safe.add if is_safe else self._safe.discard)(block)
        if is_idle:
            self._idle_of(block)[block] = None

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def is_safe(self, block: int) -> bool:
        return block in self._safe

    def check(self, held: dict[int, int]) -> None:
        """Assert that every block is in one state and held as often as `held` says."""
        free, idle = set(self._free), {*self._idle_safe, *self._idle_unsafe}
        in_use = {block for block, count in enumerate(self._ref_counts) if count}
        assert len(free) == len(self._free), "a block is free twice"
        assert len(idle) == self.num_idle, "a block is idle twice"
        assert not (free & idle or free & in_use or idle & in_use), "a block has two states"
        assert free | idle | in_use == set(range(len(self._ref_counts))) - self._reserved
        assert held == {block: self._ref_counts[block] for block in in_use}
        assert set(self._idle_safe) <= self._safe and not set(self._idle_unsafe) & self._safe

    def _idle_of(self, block: int) -> OrderedDict[int, None]:
        return self._idle_safe if block in self._safe else self._idle_unsafe
