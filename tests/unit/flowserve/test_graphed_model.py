"""When a decode replays a graph, and how serving goes on while graphs are made."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.devices.base import AttentionInputs, DecodeGraph, Forward
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.flowserve.models.graphed import (
    DECODES_BEFORE_CAPTURE,
    GraphedModel,
    capture_order,
    graph_sizes,
    size_for,
)

BLOCKS_PER_ROW = 4


def step_inputs(counts: list[int], width: int = 1) -> AttentionInputs:
    return AttentionInputs(
        block_size=16,
        counts=counts,
        lengths=counts,
        block_tables=torch.ones(len(counts), width, dtype=torch.int32),
        slots=torch.arange(16, 16 + sum(counts)),
    )


@given(st.integers(0, 600))
def test_sizes_rise_to_the_largest_batch(rows_max: int) -> None:
    sizes = graph_sizes(rows_max)
    assert sizes == sorted(set(sizes)) and all(size >= 1 for size in sizes)
    assert (sizes[-1] if sizes else 0) == rows_max
    assert all(after <= 2 * before for before, after in pairwise(sizes))


@given(st.integers(1, 300), st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_a_graph_runs_decodes_that_fit_and_nothing_else(
    rows_max: int, counts: list[int], width: int
) -> None:
    sizes = graph_sizes(rows_max)
    found = size_for(sizes, step_inputs(counts, width), BLOCKS_PER_ROW)
    fits = set(counts) == {1} and len(counts) <= rows_max and width <= BLOCKS_PER_ROW
    assert (found is not None) == fits
    if found is not None:
        assert found == min(size for size in sizes if size >= len(counts))


@given(st.integers(1, 300), st.data())
def test_the_wanted_size_is_captured_first(rows_max: int, data: st.DataObject) -> None:
    sizes = graph_sizes(rows_max)
    wanted = data.draw(st.sampled_from(sizes))
    order = capture_order(sizes, wanted)
    assert order[0] == wanted and sorted(order) == sizes and order[1:] == sorted(order[1:])


class OnesModel:
    def forward(self, token_ids: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.ones(len(token_ids), 2)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 3


class Graph:
    def replay(self, token_ids: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full((len(token_ids), 2), 5.0)


class GraphDevice(CpuDevice):
    """Its graphs say something else than the model, so that one sees who spoke."""

    graph_rows_max = 6

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[int] = []

    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        if rows == 4:
            raise RuntimeError("out of streams")
        ids = torch.zeros(rows, dtype=torch.int64)
        attention = self.begin_attention(step_inputs([1] * rows))
        assert forward(ids, ids, attention).shape == (rows, 2)
        self.captured.append(rows)
        return Graph()


class Driven:
    def __init__(self, max_sequences: int = 64) -> None:
        self.device = GraphDevice()
        self.work: list[Callable[[], None]] = []
        self.model = GraphedModel(
            OnesModel(),
            self.device,
            [],
            max_sequences=max_sequences,
            blocks_per_row=BLOCKS_PER_ROW,
            run_beside=self.work.append,
        )

    def said(self, counts: list[int]) -> float:
        ids = torch.zeros(sum(counts), dtype=torch.int64)
        attention = self.device.begin_attention(step_inputs(counts))
        hidden = self.model.forward(ids, ids, attention, [])
        assert hidden.shape == (sum(counts), 2)
        return float(hidden[0, 0])


def test_nothing_is_captured_before_enough_decodes_were_served() -> None:
    driven = Driven()
    for _ in range(20):
        driven.said([5])  # prefills do not count
    for _ in range(DECODES_BEFORE_CAPTURE - 1):
        assert driven.said([1, 1]) == 1
    assert not driven.work
    driven.said([1, 1])
    assert len(driven.work) == 1
    for _ in range(20):
        assert driven.said([1, 1]) == 1  # while it is captured
    assert len(driven.work) == 1


def test_graphs_take_over_and_a_capture_that_fails_ends_the_capturing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven = Driven()
    for _ in range(DECODES_BEFORE_CAPTURE):
        driven.said([1, 1])
    driven.work.pop()()
    assert driven.device.captured == [2, 1]
    assert "no graph for 4 rows" in caplog.text
    assert driven.said([1]) == driven.said([1, 1]) == 5
    assert driven.said([1, 1, 1]) == 1  # the graph of four that there is not
    assert driven.said([1, 4]) == 1
    assert driven.model.replays == 2


def test_only_as_many_rows_as_the_device_captures() -> None:
    driven = Driven(max_sequences=3)
    for _ in range(DECODES_BEFORE_CAPTURE):
        driven.said([1])
    driven.work.pop()()
    assert driven.device.captured == [1, 2, 3]
    assert torch.equal(driven.model.logits(torch.ones(1, 2)), torch.full((1, 2), 3.0))
