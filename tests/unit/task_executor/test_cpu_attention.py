"""Paged attention on the CPU against attention written down plainly, one token at a time."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.devices.base import AttentionInputs, LayerKv
from services.task_executor.devices.cpu import attention
from services.task_executor.devices.cpu.attention import CpuAttentionStep
from services.task_executor.devices.cpu.native.decode_attention import (
    DecodeAttention,
    begin_build,
)

BLOCK_SIZE = 4
KV_HEADS, HEADS, HEAD_DIM = 2, 6, 8
BLOCKS_PER_ENTRY = 8


@dataclass(frozen=True)
class Step:
    """Entry i runs the last counts[i] of its lengths[i] tokens."""

    counts: list[int]
    lengths: list[int]


LENGTHS = st.integers(1, BLOCK_SIZE * BLOCKS_PER_ENTRY)
ENTRIES = LENGTHS.flatmap(
    lambda length: st.tuples(st.just(1) | st.integers(1, length), st.just(length))
)
STEPS = st.lists(ENTRIES, min_size=1, max_size=6).map(
    lambda entries: Step([count for count, _ in entries], [length for _, length in entries])
)
WINDOWS = st.none() | st.integers(1, 40)


class Memory:
    """Every entry's keys and values, those of the step itself not yet in the blocks."""

    def __init__(self, step: Step, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        entries = len(step.counts)
        order = torch.randperm(entries * BLOCKS_PER_ENTRY, generator=generator)
        self.tables = (1 + order).view(entries, -1).int()
        self.keys = [random(length, KV_HEADS, HEAD_DIM) for length in step.lengths]
        self.values = [random(length, KV_HEADS, HEAD_DIM) for length in step.lengths]
        self.queries = random(sum(step.counts), HEADS, HEAD_DIM)
        self.step = step

    def slots(self, entry: int, start: int, end: int) -> torch.Tensor:
        positions = torch.arange(start, end)
        blocks = self.tables[entry].long()[positions // BLOCK_SIZE]
        return blocks * BLOCK_SIZE + positions % BLOCK_SIZE

    def fresh_kv(self) -> LayerKv:
        """What earlier steps wrote; never written blocks hold what would be noticed."""
        blocks = 1 + self.tables.numel()
        kv = LayerKv(*(torch.full((blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM), 1e4) for _ in "kv"))
        kv.keys[0], kv.values[0] = 0, 0
        for cache, contents in ((kv.keys, self.keys), (kv.values, self.values)):
            flat = cache.view(-1, KV_HEADS, HEAD_DIM)
            for entry, count, length in self.entries():
                done = length - count
                flat[self.slots(entry, 0, done)] = contents[entry][:done]
        return kv

    def entries(self) -> list[tuple[int, int, int]]:
        return list(zip(range(99), self.step.counts, self.step.lengths, strict=False))

    def begin(self, kernel: DecodeAttention | None = None) -> CpuAttentionStep:
        slots = [
            self.slots(entry, length - count, length) for entry, count, length in self.entries()
        ]
        width = -(-max(self.step.lengths) // BLOCK_SIZE)
        inputs = AttentionInputs(
            BLOCK_SIZE,
            self.step.counts,
            self.step.lengths,
            self.tables[:, :width],
            torch.cat(slots),
        )
        return CpuAttentionStep(inputs, kernel)

    def attend(self, running: CpuAttentionStep, window: int | None) -> torch.Tensor:
        def new(contents: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([contents[entry][-count:] for entry, count, _ in self.entries()])

        return running(self.queries, new(self.keys), new(self.values), self.fresh_kv(), window)

    def expected(self, window: int | None) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        for entry, count, length in self.entries():
            for position in range(length - count, length):
                first = 0 if window is None else max(0, position - window + 1)
                seen = slice(first, position + 1)
                rows.append(
                    plainly(
                        self.queries[len(rows)], self.keys[entry][seen], self.values[entry][seen]
                    )
                )
        return torch.stack(rows)


def plainly(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """query: [heads, head_dim]; keys and values: [seen, kv_heads, head_dim]."""
    shared = HEADS // KV_HEADS
    keys, values = (it.repeat_interleave(shared, dim=1) for it in (keys, values))
    weights = torch.einsum("hd,shd->hs", query, keys).div(math.sqrt(HEAD_DIM)).softmax(-1)
    return torch.einsum("hs,shd->hd", weights, values)


@pytest.fixture(scope="module")
def kernel() -> DecodeAttention:
    built = begin_build().wait()
    if built is None:
        pytest.skip("no C compiler here: decodes go through torch, which the other tests cover")
    return built


def check(step: Step, windows: list[int | None], seed: int, kernel: DecodeAttention | None) -> None:
    memory = Memory(step, seed)
    running = memory.begin(kernel)
    for window in windows:
        attended = memory.attend(running, window)
        assert torch.allclose(attended, memory.expected(window), atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(step=STEPS, windows=st.lists(WINDOWS, min_size=1, max_size=3), seed=st.integers(0, 999))
def test_every_token_sees_its_window_and_nothing_else(
    step: Step, windows: list[int | None], seed: int
) -> None:
    check(step, windows, seed, None)


@settings(deadline=None, max_examples=60)
@given(step=STEPS, windows=st.lists(WINDOWS, min_size=1, max_size=3), seed=st.integers(0, 999))
def test_the_kernel_sees_the_same(
    kernel: DecodeAttention, step: Step, windows: list[int | None], seed: int
) -> None:
    check(step, windows, seed, kernel)


def test_layers_of_one_window_share_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []

    class Counted(attention._Work):
        def __init__(self, inputs: AttentionInputs, window: int | None) -> None:
            made.append(window)
            super().__init__(inputs, window)

    monkeypatch.setattr(attention, "_Work", Counted)
    memory = Memory(Step([1, 5], [9, 20]), seed=1)
    running = memory.begin()
    for window in (None, 6, 6, None, 6):
        memory.attend(running, window)
    assert made == [None, 6]


def test_a_window_gathers_no_block_that_nobody_sees() -> None:
    work = attention._Work(_inputs([1, 3], [30, 29]), window=5)
    assert [len(group.blocks) for group in work.groups] == [2]
    assert [len(chunk.context.blocks) for chunk in work.chunks if chunk.context] == [3]


def test_a_whole_context_is_not_read_back() -> None:
    work = attention._Work(_inputs([9, 3, 9], [9, 9, 12]), window=10)
    assert [chunk.context is None for chunk in work.chunks] == [True, False, False]


def _inputs(counts: list[int], lengths: list[int]) -> AttentionInputs:
    tables = torch.arange(1, 1 + len(counts) * BLOCKS_PER_ENTRY).view(len(counts), -1).int()
    return AttentionInputs(BLOCK_SIZE, counts, lengths, tables, torch.arange(sum(counts)))
