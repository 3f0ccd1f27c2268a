"""A decode step as one NPU graph: captured for a fixed number of rows, replayed for up to as many.

The attention kernel takes context lengths from the host, and a capture bakes them in. So the graph
is captured with its attention calls apart, and each replay is followed by an update that gives
them their lengths; they wait for it on the device.
"""

import numpy as np
import torch
import torch_npu

from services.task_executor.devices.base import AttentionInputs, Device, Forward
from services.task_executor.devices.npu.attention import (
    GraphedAttentionStep,
    PagedIndexes,
    fresh_blocks,
    wipe,
)
from services.task_executor.devices.npu.limits import BLOCK_SIZE, GRAPH_ROWS_MAX

# What an update changes: names of the attention kernel's arguments.
ENDS, LENGTHS = "actual_seq_lengths", "actual_seq_lengths_kv"
# The block that belongs to nobody.
_TRASH = 0


class GraphError(RuntimeError):
    """What was captured is not what a replay could be updated for."""


class NpuDecodeGraph:
    def __init__(
        self,
        device: Device,
        forward: Forward,
        mask: torch.Tensor,
        *,
        rows: int,
        blocks_per_row: int,
        pool: object,
    ) -> None:
        assert rows <= GRAPH_ROWS_MAX
        self.pool = pool
        self._device = device
        self._rows = rows
        self._ends = list(range(1, rows + 1))
        self._token_ids = device.to_device(np.zeros(rows, dtype=np.int64))
        self._positions = device.to_device(np.zeros(rows, dtype=np.int64))
        self._slots = device.to_device(_trash_slots(rows))
        self._tables = device.to_device(np.full((rows, blocks_per_row), _TRASH, dtype=np.int32))
        self._last_replay: torch_npu.npu.Event | None = None
        self._graph = torch_npu.npu.NPUGraph()
        self._step = self._new_step(mask)
        forward(self._token_ids, self._positions, self._step)  # kernels are loaded by a first call
        self._step = self._new_step(mask)
        # Other threads go on launching and allocating meanwhile.
        with torch_npu.npu.graph(
            self._graph, pool=pool, auto_dispatch_capture=True, capture_error_mode="thread_local"
        ):
            self._output = forward(self._token_ids, self._positions, self._step)
        self._check_capture()

    def replay(
        self, token_ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs
    ) -> torch.Tensor:
        count = len(token_ids)
        assert count <= self._rows and all(it == 1 for it in inputs.counts)
        self._fill(token_ids, positions, inputs)
        self._wipe_fresh(inputs)
        # An update that overtakes the replay before it would change lengths under its feet.
        if self._last_replay is not None:
            self._last_replay.synchronize()
        self._graph.replay()
        padding = [1] * (self._rows - count)
        self._graph.update(
            cpu_update_input=[{ENDS: self._ends, LENGTHS: [*inputs.lengths, *padding]}]
        )
        self._last_replay = torch_npu.npu.Event()
        self._last_replay.record()
        return self._output[:count]

    def _new_step(self, mask: torch.Tensor) -> GraphedAttentionStep:
        lengths = [1] * self._rows
        nowhere = torch.zeros(self._rows, 1, dtype=torch.int32)
        inputs = AttentionInputs(BLOCK_SIZE, lengths, lengths, nowhere, nowhere.flatten().long())
        indexes = PagedIndexes(self._slots, self._tables, self._ends, lengths)
        return GraphedAttentionStep(inputs, indexes, mask)

    def _fill(
        self, token_ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs
    ) -> None:
        """Put this step where the graph reads it; what is left over becomes padding."""
        count = len(token_ids)
        self._token_ids[:count].copy_(token_ids)
        self._positions[:count].copy_(positions)
        self._token_ids[count:].zero_()
        self._positions[count:].zero_()
        slots = _trash_slots(self._rows)
        slots[:count] = inputs.slots.numpy()
        tables = np.full(self._tables.shape, _TRASH, dtype=np.int32)
        tables[:count, : inputs.block_tables.shape[1]] = inputs.block_tables.numpy()
        self._slots.copy_(self._device.to_device(slots))
        self._tables.copy_(self._device.to_device(tables))

    def _wipe_fresh(self, inputs: AttentionInputs) -> None:
        fresh = fresh_blocks(inputs)
        if not len(fresh):
            return
        blocks = self._device.to_device(fresh)
        for kv in self._step.layers:
            wipe(kv, blocks)

    def _check_capture(self) -> None:
        """An update ignores what it does not find, and the answer would be of an old length."""
        records = self._graph.graph_dispatch_mode.graph_dispatch_records
        if len(records) != len(self._step.layers):
            raise GraphError(
                f"{len(records)} attention calls were captured of {len(self._step.layers)}"
            )
        for record in records:
            if missing := {ENDS, LENGTHS} - record.kwargs.keys():
                raise GraphError(f"a captured attention call has no {', '.join(sorted(missing))}")


def _trash_slots(rows: int) -> np.ndarray:
    """A slot of the trash block for each row: kernels want no slot twice."""
    return _TRASH * BLOCK_SIZE + np.arange(rows, dtype=np.int32)
