"""Triton's paged attention, interpreted, against attention written down plainly.

All that no sequence wrote is NaN: whoever reads one position too many answers NaN.
"""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.devices.cuda.indexes import upload
from services.task_executor.devices.cuda.paged_attention import PagedAttention, Shape
from services.task_executor.devices.cuda.tiles import Splits, Tiles, padded
from tests.cuda.memory import Heads, Memory, Step
from tests.cuda.on_cpu import TritonOnCpu, multiply_bf16

multiply_bf16()

MIXED = Step([20, 1, 3, 1, 37], [20, 45, 19, 1, 50])
# Small ones have more edges: 16 keys at a time, contexts of more than 32 cut in up to three.
SPLITS = Splits(32, 3)


@dataclass(frozen=True)
class Case:
    heads: Heads = field(default_factory=lambda: Heads(4, 2, 16))
    block_size: int = 16
    step: Step = MIXED
    window: int | None = None
    splits: Splits = SPLITS
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def run(self) -> None:
        memory = Memory(self.step, self.heads, self.block_size, self.seed, self.dtype)
        attention = attention_of(memory, self.splits)
        indexes = upload(memory.inputs(), attention.tokens_per_item, torch.from_numpy)
        keys, values = memory.new(memory.keys), memory.new(memory.values)
        attention.write(keys, values, memory.kv, indexes)
        attended = attention.attend(memory.queries, memory.kv, indexes, self.window)
        assert memory.holds(memory.kv.keys, memory.keys)
        assert memory.holds(memory.kv.values, memory.values)
        close = 1e-5 if self.dtype == torch.float32 else 2e-2
        assert torch.allclose(attended.float(), memory.expected(self.window), atol=close)


def attention_of(memory: Memory, splits: Splits) -> PagedAttention:
    shape = Shape.of(memory.queries, memory.kv)
    heads = padded(shape.group)
    tiles = Tiles(chunk_rows=heads, decode_rows=heads, keys=16)
    return PagedAttention(shape, tiles, splits)


CASES = {
    "one head for each": Case(Heads(3, 3, 16)),
    "two heads share": Case(Heads(2, 1, 16)),
    "three heads share": Case(Heads(6, 2, 16)),
    "five heads share": Case(Heads(5, 1, 16)),
    "seven heads share": Case(Heads(7, 1, 16)),
    "eight heads share": Case(Heads(16, 2, 16)),
    "seventeen heads share": Case(Heads(17, 1, 16)),
    "heads of 10": Case(Heads(2, 2, 10)),
    "heads of 40": Case(Heads(4, 2, 40)),
    "heads of 64": Case(Heads(4, 2, 64)),
    "heads of 80": Case(Heads(2, 1, 80)),
    "heads of 128": Case(Heads(2, 1, 128)),
    "heads of 256": Case(Heads(2, 1, 256)),
    "blocks of 128": Case(block_size=128),
    "blocks of 5": Case(block_size=5),
    "blocks of 1": Case(block_size=1),
    "window of 1": Case(window=1),
    "window of 7": Case(window=7),
    "window of a block": Case(window=16),
    "window of 33": Case(window=33),
    "window longer than all": Case(window=400),
    "nothing is split": Case(splits=Splits(16, 1)),
    "many splits": Case(step=Step([1, 1, 1], [300, 17, 16]), splits=Splits(16, 40)),
    "fewer splits than wanted": Case(step=Step([1, 1], [130, 65]), splits=Splits(16, 3)),
    "split in windows": Case(step=Step([1, 1], [130, 20]), splits=Splits(16, 3), window=50),
    "decodes only": Case(step=Step([1, 1, 1, 1], [1, 16, 17, 48])),
    "chunks only": Case(step=Step([2, 33], [2, 64])),
    "bf16": Case(Heads(6, 2, 24), dtype=torch.bfloat16),
    "fp16": Case(Heads(6, 2, 24), dtype=torch.float16),
}


@pytest.mark.parametrize("name", CASES)
def test_every_token_sees_its_window_and_nothing_else(name: str) -> None:
    CASES[name].run()


LENGTHS = st.integers(1, 60)
ENTRIES = LENGTHS.flatmap(
    lambda length: st.tuples(st.just(1) | st.integers(1, length), st.just(length))
)
STEPS = st.lists(ENTRIES, min_size=1, max_size=3).map(
    lambda entries: Step([count for count, _ in entries], [length for _, length in entries])
)
HEADS = st.builds(
    lambda kv, group, dim: Heads(kv * group, kv, dim),
    st.integers(1, 2),
    st.integers(1, 8),
    st.sampled_from([6, 16, 30, 40]),
)
RANDOM = st.builds(
    Case,
    heads=HEADS,
    block_size=st.sampled_from([1, 3, 16, 32]),
    step=STEPS,
    window=st.none() | st.integers(1, 40),
    splits=st.builds(Splits, st.sampled_from([16, 32]), st.integers(1, 5)),
    seed=st.integers(0, 99),
)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(case=RANDOM)
def test_random_steps(case: Case) -> None:
    case.run()


def test_the_device_runs_a_step_with_tiles_of_its_own() -> None:
    """Queries, keys and values as a model hands them over: views of one fused product."""
    memory = Memory(Step([70, 1], [70, 300]), Heads(4, 2, 40), 16)
    step = TritonOnCpu().begin_attention(memory.inputs())
    fused = torch.cat((memory.queries, memory.new(memory.keys), memory.new(memory.values)), dim=1)
    for window in (None, 30):
        attended = step(fused[:, :4], fused[:, 4:6], fused[:, 6:], memory.kv, window)
        assert torch.allclose(attended, memory.expected(window), atol=1e-5)
    assert memory.holds(memory.kv.keys, memory.keys)


def test_a_rows_bits_do_not_depend_on_the_rows_beside_it() -> None:
    """The others are longer: more splits are launched, of which it has as many as alone."""
    memory = Memory(Step([1, 1, 1], [40, 16, 200]), Heads(4, 2, 16), 16)
    attention = attention_of(memory, Splits(16, 20))

    def attend(entries: list[int]) -> torch.Tensor:
        keys, values = memory.new(memory.keys)[entries], memory.new(memory.values)[entries]
        indexes = upload(memory.inputs(entries), attention.tokens_per_item, torch.from_numpy)
        attention.write(keys, values, memory.kv, indexes)
        return attention.attend(memory.queries[entries], memory.kv, indexes, None)

    together = attend([0, 1, 2])
    for entry in range(3):
        assert torch.equal(attend([entry])[0], together[entry])


def test_a_nan_reaches_only_those_who_see_it() -> None:
    memory = Memory(Step([1, 1], [20, 20]), Heads(2, 1, 16), 16)
    memory.keys[1][:] = torch.nan
    attention = attention_of(memory, SPLITS)
    indexes = upload(memory.inputs(), attention.tokens_per_item, torch.from_numpy)
    attention.write(memory.new(memory.keys), memory.new(memory.values), memory.kv, indexes)
    attended = attention.attend(memory.queries, memory.kv, indexes, None)
    assert attended[0].isfinite().all() and attended[1].isnan().all()
