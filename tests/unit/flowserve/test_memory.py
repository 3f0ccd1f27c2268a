"""Does it fit: whatever is planned fits, and whatever is proposed would."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sizes import GIB, MIB
from services.task_executor.flowserve.executor.memory import (
    CUT_CONTEXT_MIN,
    Demand,
    DoesNotFit,
    Footprint,
    MemoryPlan,
    blocks_for,
    find_remedies,
    plan_memory,
)

footprints = st.builds(
    Footprint,
    dtype=st.just("float32"),
    weight_bytes=st.integers(0, 10**12),
    working_bytes=st.integers(0, 10**10),
    block_bytes=st.integers(1, 10**8),
    gather_bytes=st.integers(0, 10**7),
)
maybe = st.none()


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    footprint = draw(footprints)
    context = draw(st.integers(2, 10**6))
    smaller = replace(
        footprint,
        dtype="bfloat16",
        weight_bytes=footprint.weight_bytes // 2,
        block_bytes=max(1, footprint.block_bytes // 2),
    )
    return Demand(
        footprint=footprint,
        context_length=context,
        block_size=draw(st.sampled_from([1, 4, 16, 128])),
        max_tokens=draw(maybe | st.integers(2, context)),
        kv_bytes=draw(maybe | st.integers(1, 10**12)),
        kv_blocks=draw(maybe | st.integers(1, 10**5)),
        alternatives=draw(st.sampled_from([(), (smaller,)])),
    )


available_bytes = st.integers(-(10**9), 2 * 10**12)


def fits(demand: Demand, available: int) -> bool:
    try:
        plan_memory(demand, available)
    except DoesNotFit:
        return False
    return True


@given(demands(), available_bytes)
def test_a_plan_fits_and_holds_its_longest_sequence(demand: Demand, available: int) -> None:
    try:
        plan = plan_memory(demand, available)
    except DoesNotFit:
        return
    assert plan.total_bytes <= available
    assert 2 <= plan.max_tokens <= demand.context_length
    if (demand.max_tokens, demand.kv_bytes, demand.kv_blocks) == (None, None, None):
        assert plan.max_tokens >= min(demand.context_length, CUT_CONTEXT_MIN)
    assert blocks_for(plan.max_tokens, demand.block_size) <= plan.kv_blocks
    assert plan.kv_bytes == plan.kv_blocks * demand.footprint.block_bytes
    if demand.max_tokens is not None:
        assert plan.max_tokens == demand.max_tokens
    if demand.kv_blocks is not None:
        assert plan.kv_blocks == demand.kv_blocks
    elif demand.kv_bytes is not None:
        assert plan.kv_bytes <= demand.kv_bytes


@given(demands(), available_bytes)
def test_each_remedy_alone_is_enough(demand: Demand, available: int) -> None:
    if fits(demand, available):
        return
    remedies = find_remedies(demand, available)
    if remedies.max_tokens is not None:
        assert demand.max_tokens is not None and remedies.max_tokens < demand.max_tokens
        assert fits(replace(demand, max_tokens=remedies.max_tokens), available)
    if remedies.kv_bytes is not None:
        assert demand.kv_bytes is not None or demand.kv_blocks is not None
        assert fits(replace(demand, kv_blocks=None, kv_bytes=remedies.kv_bytes), available)
    if remedies.dtype is not None:
        other = next(it for it in demand.alternatives if it.dtype == remedies.dtype)
        assert fits(replace(demand, footprint=other), available)
    if remedies.free_bytes is not None:
        assert remedies.free_bytes > 0
        assert fits(demand, available + remedies.free_bytes)
        assert not fits(demand, available + remedies.free_bytes - 1)


@given(demands(), available_bytes)
def test_more_memory_never_makes_a_demand_fail(demand: Demand, available: int) -> None:
    if fits(demand, available):
        assert fits(demand, available + 12345)


@given(demands(), available_bytes)
def test_memory_is_named_as_a_remedy_unless_the_cache_is_settled_too_small(
    demand: Demand, available: int
) -> None:
    if fits(demand, available):
        return
    can_ever_fit = fits(demand, 10**30)
    assert (find_remedies(demand, available).free_bytes is not None) == can_ever_fit


def a_demand(**changes: object) -> Demand:
    """2 GiB of weights, 64 KiB of KV a token."""
    big = Footprint("float32", 2 * GIB, 128 * MIB, MIB)
    small = Footprint("bfloat16", GIB, 128 * MIB, MIB // 2)
    demand = Demand(big, context_length=131_072, block_size=16, alternatives=(small,))
    return replace(demand, **changes)  # type: ignore[arg-type]


def test_the_default_context_is_cut_to_half_of_what_is_free() -> None:
    plan = plan_memory(a_demand(), 4 * GIB + 128 * MIB)
    assert plan == MemoryPlan(1024, 1023 * 16, 2 * GIB, GIB, 128 * MIB)


def test_a_short_context_gets_the_usual_cache_and_no_more() -> None:
    plan = plan_memory(a_demand(context_length=2048), 100 * GIB)
    assert (plan.max_tokens, plan.kv_bytes) == (2048, GIB)


def test_a_long_context_gets_room_for_one_whole_sequence() -> None:
    plan = plan_memory(a_demand(), 100 * GIB)
    assert (plan.max_tokens, plan.kv_blocks) == (131_072, 8193)


def refusal(demand: Demand, available: int) -> str:
    with pytest.raises(DoesNotFit) as refused:
        plan_memory(demand, available)
    return str(refused.value)


def test_a_refusal_says_what_is_needed_and_what_would_fit() -> None:
    words = refusal(a_demand(max_tokens=32_768), 4 * GIB)
    assert "4.13 GiB of memory are needed" in words and "there are 4.00 GiB" in words
    assert "2.00 GiB weights in float32, 2.00 GiB KV cache" in words
    assert "max_tokens 30704, or dtype bfloat16, or 129 MiB more free memory" in words


def test_a_cache_settled_too_large_leaves_a_smaller_one() -> None:
    words = refusal(a_demand(kv_bytes=8 * GIB), 4 * GIB)
    assert "8.00 GiB KV cache" in words and "what would fit: KV memory of 1.87 GiB, or " in words


def test_weights_that_do_not_fit_alone_leave_a_smaller_dtype() -> None:
    words = refusal(a_demand(), 2 * GIB)
    assert "what would fit: dtype bfloat16, or 145 MiB more free memory" in words


def test_a_cache_smaller_than_a_block_is_named_as_it_was_given() -> None:
    words = refusal(a_demand(kv_bytes=5), 100 * GIB)
    assert words.startswith("the KV memory of 5 bytes holds 0 tokens, but the smallest cache is")


def test_a_cache_settled_too_small_is_no_matter_of_memory() -> None:
    words = refusal(a_demand(kv_bytes=64 * MIB, max_tokens=4096), 100 * GIB)
    assert words.startswith("the KV memory of 64.0 MiB holds 1008 tokens, but 4096 tokens need")
    assert words.endswith("what would fit: max_tokens 1008")
