"""Does it fit? Decided from sizes alone, before a single weight is read.

Memory is asked for three things: the weights, the KV cache, and what a step works with. What is
not settled by the person is derived; what does not fit is refused with what would.
"""

from dataclasses import dataclass, replace

from deepflow.core.sizes import GIB, format_at_least, format_at_most, format_bytes

# What a KV cache takes by default where nobody needs more for a single long sequence.
KV_BYTES_DEFAULT = GIB
# More only makes the prefix index large: a million tokens in blocks of 16.
KV_BLOCKS_DEFAULT_MAX = 65_536
# A model that is left less context than this is of no use to who did not ask for that.
CUT_CONTEXT_MIN = 256
# The trash block and one that holds tokens.
KV_BLOCKS_MIN = 2


class DoesNotFit(ValueError):
    """The message says what is needed, what there is and what would fit."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes in one dtype."""

    dtype: str
    weight_bytes: int
    working_bytes: int  # of the largest step, and while weights are converted
    block_bytes: int  # K and V of one block over all layers
    gather_bytes: int = 0  # what attention copies of one block while a layer reads it

    @property
    def fixed_bytes(self) -> int:
        return self.weight_bytes + self.working_bytes

    @property
    def bytes_per_block(self) -> int:
        return self.block_bytes + self.gather_bytes


@dataclass(frozen=True, slots=True)
class Demand:
    """One load: the first footprint is the one asked for, the others are what the device could."""

    footprint: Footprint
    context_length: int
    block_size: int
    max_tokens: int | None = None  # asked for by name; None = as many as fit
    kv_bytes: int | None = None
    kv_blocks: int | None = None
    alternatives: tuple[Footprint, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    kv_blocks: int
    max_tokens: int
    weight_bytes: int
    kv_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.working_bytes


@dataclass(frozen=True, slots=True)
class Remedies:
    """What would fit, where something would; each alone is enough."""

    max_tokens: int | None  # a shorter context
    kv_bytes: int | None  # a smaller cache than the one that was settled
    dtype: str | None  # a smaller one
    free_bytes: int | None  # this much more memory


def plan_memory(demand: Demand, available: int) -> MemoryPlan:
    """Raises DoesNotFit."""
    plan = _try(demand, available)
    if isinstance(plan, MemoryPlan):
        return plan
    raise DoesNotFit(_sentence(plan, find_remedies(demand, available), available))


def find_remedies(demand: Demand, available: int) -> Remedies:
    """For a demand that does not fit."""
    return Remedies(
        max_tokens=_shorter(demand, available),
        kv_bytes=_smaller_kv(demand, available),
        dtype=next((it.dtype for it in _smaller(demand) if _fits(demand, it, available)), None),
        free_bytes=_to_free(demand, available),
    )


@dataclass(frozen=True, slots=True)
class _Shortage:
    demand: Demand
    blocks: int
    what: str  # where no machine would be large enough

    @property
    def needed(self) -> int:
        foot = self.demand.footprint
        return foot.fixed_bytes + self.blocks * foot.bytes_per_block


def _try(demand: Demand, available: int) -> MemoryPlan | _Shortage:
    foot = demand.footprint
    least = _least_blocks(demand)
    blocks = _kv_blocks(demand, least, available - foot.fixed_bytes)
    if blocks < least:
        return _Shortage(demand, least, _too_small_kv(demand, blocks))
    if foot.fixed_bytes + blocks * foot.bytes_per_block > available:
        return _Shortage(demand, blocks, "")
    room = (blocks - 1) * demand.block_size
    return MemoryPlan(
        kv_blocks=blocks,
        # A sequence longer than all blocks together could never finish.
        max_tokens=demand.max_tokens or min(demand.context_length, max(room, 2)),
        weight_bytes=foot.weight_bytes,
        kv_bytes=blocks * foot.block_bytes,
        working_bytes=foot.working_bytes + blocks * foot.gather_bytes,
    )


def _least_blocks(demand: Demand) -> int:
    """For what was asked for by name; a context that nobody asked for may be cut, within reason."""
    usual = 2 if _is_settled(demand) else min(demand.context_length, CUT_CONTEXT_MIN)
    return max(KV_BLOCKS_MIN, blocks_for(demand.max_tokens or usual, demand.block_size))


def _is_settled(demand: Demand) -> bool:
    return demand.kv_blocks is not None or demand.kv_bytes is not None


def _kv_blocks(demand: Demand, least: int, room: int) -> int:
    """As settled; else room for one whole context or the usual cache, in half of what is free."""
    if demand.kv_blocks is not None:
        return demand.kv_blocks
    block_bytes = demand.footprint.block_bytes
    if demand.kv_bytes is not None:
        return demand.kv_bytes // block_bytes
    whole = blocks_for(demand.max_tokens or demand.context_length, demand.block_size)
    wanted = max(whole, min(KV_BYTES_DEFAULT // block_bytes, KV_BLOCKS_DEFAULT_MAX))
    return max(least, min(wanted, room // 2 // demand.footprint.bytes_per_block))


def blocks_for(max_tokens: int, block_size: int) -> int:
    """Blocks that hold one sequence of this length, the trash block included."""
    return 1 + -(-max_tokens // block_size)


def _fits(demand: Demand, footprint: Footprint, available: int) -> bool:
    return isinstance(_try(replace(demand, footprint=footprint), available), MemoryPlan)


def _smaller(demand: Demand) -> list[Footprint]:
    mine = demand.footprint
    return [it for it in demand.alternatives if it.weight_bytes < mine.weight_bytes]


def _shorter(demand: Demand, available: int) -> int | None:
    """The longest context with the KV memory as settled, or with all that is free."""
    foot = demand.footprint
    room = available - foot.fixed_bytes
    blocks = _kv_blocks(replace(demand, max_tokens=None), 0, 2 * room)
    tokens = min((blocks - 1) * demand.block_size, demand.context_length)
    if demand.max_tokens is None or not 2 <= tokens < demand.max_tokens:
        return None
    fits = _try(replace(demand, max_tokens=tokens), available)
    return tokens if isinstance(fits, MemoryPlan) else None


def _smaller_kv(demand: Demand, available: int) -> int | None:
    """The largest cache that fits, where it was settled too large and a smaller one is enough."""
    foot = demand.footprint
    settled = _kv_blocks(demand, 0, 0)
    blocks = (available - foot.fixed_bytes) // foot.bytes_per_block
    if not _is_settled(demand) or not _least_blocks(demand) <= blocks < settled:
        return None
    return blocks * foot.block_bytes


def _to_free(demand: Demand, available: int) -> int | None:
    """How much more memory it takes; None where no memory helps, because the cache is settled."""
    shortage = _try(demand, available)
    if isinstance(shortage, MemoryPlan):
        return None
    more = shortage.needed - available
    if more <= 0 or not isinstance(_try(demand, available + more), MemoryPlan):
        return None
    return more


def _too_small_kv(demand: Demand, blocks: int) -> str:
    """Where the cache was settled too small for what is asked of it; no machine changes that."""
    if not _is_settled(demand):
        return ""
    foot, size = demand.footprint, demand.block_size
    least = _least_blocks(demand)
    needs = f"{demand.max_tokens} tokens need" if demand.max_tokens else "the smallest cache is"
    return (
        f"the KV memory of {format_bytes(_settled_bytes(demand))} holds "
        f"{max(0, blocks - 1) * size} tokens, but {needs} "
        f"{format_at_least(least * foot.block_bytes)} ({least} blocks of {size} tokens)"
    )


def _settled_bytes(demand: Demand) -> int:
    """As the person gave it: what is over a whole block counts in the sentence only."""
    if demand.kv_blocks is None and demand.kv_bytes is not None:
        return demand.kv_bytes
    return (demand.kv_blocks or 0) * demand.footprint.block_bytes


def _sentence(shortage: _Shortage, remedies: Remedies, available: int) -> str:
    foot = shortage.demand.footprint
    kv_bytes = shortage.blocks * foot.block_bytes
    working_bytes = shortage.needed - foot.weight_bytes - kv_bytes
    problem = shortage.what or (
        f"it does not fit: {format_bytes(shortage.needed)} of memory are needed "
        f"({format_bytes(foot.weight_bytes)} weights in {foot.dtype}, {format_bytes(kv_bytes)} KV "
        f"cache, {format_bytes(working_bytes)} working memory), but there are "
        f"{format_bytes(max(0, available))}"
    )
    ways = []
    if remedies.max_tokens:
        ways.append(f"max_tokens {remedies.max_tokens}")
    if remedies.kv_bytes:
        ways.append(f"KV memory of {format_at_most(remedies.kv_bytes)}")
    if remedies.dtype:
        ways.append(f"dtype {remedies.dtype}")
    if remedies.free_bytes:
        ways.append(f"{format_at_least(remedies.free_bytes)} more free memory")
    return f"{problem}; what would fit: {', or '.join(ways)}" if ways else problem
