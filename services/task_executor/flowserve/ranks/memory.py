"""What each rank of an engine takes, and whether it fits: decided for the one that takes most."""

from collections.abc import Sequence
from dataclasses import replace

from deepflow.core.devices import INT8
from deepflow.core.model_spec import DTYPE_BYTES, ModelSpec
from deepflow.core.parallel import Layout, Place, Share
from services.task_executor.flowserve.executor.capacity import (
    Settings,
    footprint,
    memory_demand,
)
from services.task_executor.flowserve.executor.memory import (
    DoesNotFit,
    Footprint,
    MemoryPlan,
    plan_memory,
)
from services.task_executor.flowserve.executor.weight_size import OUTPUT_BYTES


def plan_ranks(
    spec: ModelSpec,
    layout: Layout,
    settings: Settings,
    dtypes: tuple[str, ...],
    *,
    available: int,
    float_dtype: str,
) -> MemoryPlan:
    """The plan of each rank, bytes of all of them together. `available`: to the poorest rank.

    Raises DoesNotFit.
    """
    demand = memory_demand(spec, dtypes, settings, float_dtype)
    feet = [_of_greatest(spec, layout, settings, dtype, float_dtype) for dtype in dtypes]
    demand = replace(demand, footprint=feet[0], alternatives=tuple(feet[1:]))
    if settings.kv_bytes is not None:  # asked for all ranks together
        demand = replace(demand, kv_bytes=max(1, settings.kv_bytes // layout.size))
    try:
        plan = plan_memory(demand, available)
    except DoesNotFit as error:
        raise DoesNotFit(
            f"on each of {layout.size} ranks (tensor_parallel {layout.tensor}, pipeline_parallel"
            f" {layout.pipeline}) {error}"
        ) from error
    every = [
        rank_footprint(spec, place, settings, dtypes[0], float_dtype) for place in layout.places
    ]
    return replace(
        plan,
        weight_bytes=sum(foot.weight_bytes for foot in every),
        kv_bytes=sum(plan.kv_blocks * foot.block_bytes for foot in every),
        working_bytes=plan.working_bytes * layout.size,
    )


def room_of_each(rooms: Sequence[int], *, is_shared: bool, kv_dram_bytes: int) -> int:
    """That of the poorest rank. Where all are in the host's memory it is shared out, less what KV
    takes there behind the devices."""
    return (min(rooms) - kv_dram_bytes) // len(rooms) if is_shared else min(rooms)


def rank_footprint(
    spec: ModelSpec, place: Place, settings: Settings, dtype: str, float_dtype: str
) -> Footprint:
    own = Share(spec, place).spec
    foot = footprint(own, dtype, settings, float_dtype)
    # Rank 0 sees the logits of all words, and the others are like it.
    working = footprint(replace(own, vocab_size=spec.vocab_size), dtype, settings, float_dtype)
    return replace(
        foot,
        weight_bytes=foot.weight_bytes - _absent_tables(own, place, dtype, float_dtype),
        working_bytes=working.working_bytes,
    )


def _absent_tables(own: ModelSpec, place: Place, dtype: str, float_dtype: str) -> int:
    """Of the table and the head, those that are on another stage."""
    words = own.embedding_parameters
    computed = float_dtype if dtype == INT8 else dtype
    table = words * DTYPE_BYTES[computed]
    head = words + own.vocab_size * OUTPUT_BYTES if dtype == INT8 else table
    return table * (not place.is_first_stage) + head * (not place.is_last_stage)


def _of_greatest(
    spec: ModelSpec, layout: Layout, settings: Settings, dtype: str, float_dtype: str
) -> Footprint:
    every = [rank_footprint(spec, it, settings, dtype, float_dtype) for it in layout.places]
    return Footprint(
        dtype=dtype,
        weight_bytes=max(foot.weight_bytes for foot in every),
        working_bytes=max(foot.working_bytes for foot in every),
        block_bytes=max(foot.block_bytes for foot in every),
        gather_bytes=max(foot.gather_bytes for foot in every),
    )
