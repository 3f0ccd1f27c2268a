"""A decode step at fixed places computes what it computes anywhere; padding does no harm."""

import numpy as np
import torch

from services.task_executor.devices.base import AttentionInputs, AttentionStep
from services.task_executor.devices.cuda.decode_buffers import DecodeBuffers
from tests.cuda.memory import Heads, Memory, Step
from tests.cuda.on_cpu import PROCESSORS, TritonOnCpu

BLOCK_SIZE = 16
ROWS, BLOCKS_PER_ROW = 4, 7


class OneLayer:
    """A forward whose queries, keys and values follow from token ids: an index of the memory."""

    def __init__(self, memory: Memory, window: int | None) -> None:
        self._memory = memory
        self._window = window
        self.seen: list[tuple[list[int], list[int]]] = []

    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
    ) -> torch.Tensor:
        memory = self._memory
        self.seen.append((token_ids.tolist(), positions.tolist()))
        keys, values = memory.new(memory.keys)[token_ids], memory.new(memory.values)[token_ids]
        queries = memory.queries[token_ids]
        return attention(queries, keys, values, memory.kv, self._window)


def filled(
    buffers: DecodeBuffers, memory: Memory, entries: list[int]
) -> tuple[list[int], AttentionInputs]:
    inputs = memory.inputs(entries)
    positions = [length - 1 for length in inputs.lengths]
    buffers.fill(torch.tensor(entries), torch.tensor(positions), inputs)
    return positions, inputs


def test_every_replay_runs_its_own_step() -> None:
    memory = Memory(Step([1, 1, 1], [40, 16, 80]), Heads(4, 2, 16), BLOCK_SIZE)
    buffers = DecodeBuffers(TritonOnCpu(), PROCESSORS, ROWS, BLOCKS_PER_ROW)
    for window in (None, 20):
        layer = OneLayer(memory, window)
        for entries in ([0, 1, 2], [2], [1, 0]):
            positions, _ = filled(buffers, memory, entries)
            attended = buffers.run(layer)
            rest = [0] * (ROWS - len(entries))
            assert layer.seen[-1] == (entries + rest, positions + rest)
            wanted = memory.expected(window)[entries]
            assert attended.shape[0] == ROWS
            assert torch.allclose(attended[: len(entries)], wanted, atol=1e-5)
    memory.kv.keys[0], memory.kv.values[0] = torch.nan, torch.nan
    assert memory.holds(memory.kv.keys, memory.keys)
    assert memory.holds(memory.kv.values, memory.values)


def test_contexts_as_long_as_the_tables_are_attended_whole() -> None:
    """Also where the blocks of the KV are not of the size that the device prefers."""
    memory = Memory(Step([1, 1], [1500, 300]), Heads(2, 1, 16), 128)
    buffers = DecodeBuffers(TritonOnCpu(), PROCESSORS, 2, 20)
    filled(buffers, memory, [0, 1])
    attended = buffers.run(OneLayer(memory, None))
    assert torch.allclose(attended, memory.expected(None), atol=1e-5)


def test_before_it_is_filled_it_touches_the_trash_block_only() -> None:
    """The first call and the capture run beside what serves."""
    memory = Memory(Step([1, 1, 1], [40, 16, 80]), Heads(4, 2, 16), BLOCK_SIZE)
    before = memory.kv.keys.clone()
    buffers = DecodeBuffers(TritonOnCpu(), PROCESSORS, ROWS, BLOCKS_PER_ROW)
    attended = buffers.run(OneLayer(memory, None))
    assert torch.equal(memory.kv.keys[1:].nan_to_num(7.0), before[1:].nan_to_num(7.0))
    assert memory.kv.keys[0, :ROWS].isfinite().all()
    assert attended.isfinite().all()


def test_nothing_of_a_step_stays_for_the_next_one() -> None:
    """Its tables may be narrower, its rows fewer: what lay there before is padding again."""
    memory = Memory(Step([1, 1, 1], [90, 90, 1]), Heads(2, 1, 16), BLOCK_SIZE)
    buffers = DecodeBuffers(TritonOnCpu(), PROCESSORS, ROWS, BLOCKS_PER_ROW)
    fresh = DecodeBuffers(TritonOnCpu(), PROCESSORS, ROWS, BLOCKS_PER_ROW)
    inputs = AttentionInputs(
        BLOCK_SIZE, [1], [1], torch.tensor([[7]], dtype=torch.int32), torch.tensor([7 * BLOCK_SIZE])
    )
    filled(buffers, memory, [0, 1])
    for it in (buffers, fresh):
        it.fill(torch.tensor([5]), torch.tensor([0]), inputs)
    assert np.array_equal(buffers._joined, fresh._joined)
    assert torch.equal(buffers._token_ids, fresh._token_ids)
    assert torch.equal(buffers._positions, fresh._positions)
