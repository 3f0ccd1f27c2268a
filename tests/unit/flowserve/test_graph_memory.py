"""What captured decodes will take is kept free from the start, so that KV never lies there."""

from pathlib import Path

import pytest

from deepflow.core.model_spec import ModelSpec
from deepflow.core.sizes import GIB, MIB
from services.task_executor.flowserve.executor.capacity import (
    GRAPH_BYTES,
    GRAPH_LIBRARY_BYTES,
    TORCH_DEFAULTS,
    Settings,
    footprint,
    memory_demand,
)
from services.task_executor.flowserve.executor.memory import plan_memory
from services.task_executor.flowserve.models.graphed import graph_sizes
from tests.unit.flowserve.model_specs import write_config


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return ModelSpec.from_folder(write_config(tmp_path))


def settings_of(spec: ModelSpec, **given: int) -> Settings:
    return Settings.read(given, spec, TORCH_DEFAULTS, 16)


def reserve(spec: ModelSpec, settings: Settings, rows_max: int) -> int:
    with_graphs = footprint(spec, "bfloat16", settings, graph_rows_max=rows_max)
    return with_graphs.working_bytes - footprint(spec, "bfloat16", settings).working_bytes


def test_a_device_without_graphs_keeps_nothing_free(spec: ModelSpec) -> None:
    assert reserve(spec, settings_of(spec), 0) == 0


@pytest.mark.parametrize("rows", [1, 2, 5, 64, 200, 256])
def test_every_graph_that_may_be_captured_has_room(spec: ModelSpec, rows: int) -> None:
    kept = reserve(spec, settings_of(spec, max_sequences=rows), 256)
    assert kept >= GRAPH_LIBRARY_BYTES + len(graph_sizes(rows)) * GRAPH_BYTES
    assert kept < GIB


def test_no_more_rows_count_than_there_are_or_graphs_have(spec: ModelSpec) -> None:
    few, many = settings_of(spec, max_sequences=8), settings_of(spec, max_sequences=300)
    assert reserve(spec, few, 256) == reserve(spec, few, 8) > reserve(spec, few, 7)
    assert reserve(spec, many, 128) < reserve(spec, many, 256)


def test_kv_gives_way_to_what_is_captured_later(spec: ModelSpec) -> None:
    settings = settings_of(spec, max_sequences=64)
    eager, graphed = (
        memory_demand(spec, ("bfloat16",), settings, graph_rows_max=rows) for rows in (0, 256)
    )
    kept = graphed.footprint.working_bytes - eager.footprint.working_bytes
    room = graphed.footprint.fixed_bytes + MIB
    plans = [plan_memory(demand, room) for demand in (eager, graphed)]
    assert plans[1].total_bytes <= room
    # The caches of both are bounded by half of what is free.
    assert plans[0].kv_bytes > MIB > plans[1].kv_bytes
    assert plans[0].kv_bytes - plans[1].kv_bytes <= kept
