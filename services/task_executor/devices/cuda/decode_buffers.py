"""A decode step that finds its tokens at the same place every time, as a captured one must."""

import numpy as np
import torch

from services.task_executor.devices.base import AttentionInputs, Device, Forward
from services.task_executor.devices.cuda.attention import TritonAttentionStep
from services.task_executor.devices.cuda.indexes import ITEM_WIDTH, PagedIndexes

# The block that belongs to nobody.
_TRASH = 0


class DecodeBuffers:
    def __init__(self, device: Device, processors: int, rows: int, blocks_per_row: int) -> None:
        """All rows are padding at first, which writes to the trash block and reads it."""
        self._rows = rows
        self._processors = processors
        self._device = device
        self._blocks_per_row = blocks_per_row
        self._token_ids = device.to_device(np.zeros(rows, dtype=np.int64))
        self._positions = device.to_device(np.zeros(rows, dtype=np.int64))
        self._joined = device.to_device(self._padding())

    def run(self, forward: Forward) -> torch.Tensor:
        """[rows, hidden]"""
        step = TritonAttentionStep(
            self._no_inputs(), self._device, self._processors, self._indexes()
        )
        return forward(self._token_ids, self._positions, step)

    def fill(
        self, token_ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs
    ) -> None:
        """Put this step where the graph reads it; what is left over becomes padding."""
        count = len(token_ids)
        assert count <= self._rows and all(it == 1 for it in inputs.counts)
        self._token_ids[:count].copy_(token_ids)
        self._positions[:count].copy_(positions)
        self._token_ids[count:].zero_()
        self._positions[count:].zero_()
        joined = self._padding()
        items, tables, slots = self._views(torch.from_numpy(joined))
        items[:count, 3] = torch.tensor(inputs.lengths, dtype=torch.int32) - 1
        tables[:count, : inputs.block_tables.shape[1]] = inputs.block_tables
        slots[:count] = inputs.slots
        self._joined.copy_(self._device.to_device(joined))

    def _no_inputs(self) -> AttentionInputs:
        """Of padding only: what runs reads the indexes instead."""
        ones = [1] * self._rows
        nowhere = torch.zeros(self._rows, 1, dtype=torch.int32)
        return AttentionInputs(
            self._device.block_size, ones, ones, nowhere, nowhere.flatten().long()
        )

    def _indexes(self) -> PagedIndexes:
        items, tables, slots = self._views(self._joined)
        return PagedIndexes(
            slots=slots,
            chunks=items[:0],
            decodes=items,
            tables=tables,
            longest_decode=None,
        )

    def _padding(self) -> np.ndarray:
        rows = self._rows
        joined = np.zeros(rows * (ITEM_WIDTH + self._blocks_per_row + 1), dtype=np.int32)
        items, tables, slots = self._views(torch.from_numpy(joined))
        items[:, 0] = items[:, 1] = torch.arange(rows)
        items[:, 2] = 1
        tables[:] = _TRASH
        # A slot of its own for each row, as far as there are.
        slots[:] = torch.arange(rows) % self._device.block_size
        return joined

    def _views(self, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items [rows, 4], tables [rows, blocks], slots [rows]."""
        rows = self._rows
        sizes = [rows * ITEM_WIDTH, rows * self._blocks_per_row, rows]
        items, tables, slots = torch.split(joined, sizes)
        return items.view(rows, -1), tables.view(rows, -1), slots
