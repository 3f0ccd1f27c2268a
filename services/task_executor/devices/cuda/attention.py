"""Attention of a step on a CUDA card."""

import torch

from services.task_executor.devices.base import AttentionInputs, AttentionStep, Device, LayerKv
from services.task_executor.devices.cuda.indexes import PagedIndexes, upload
from services.task_executor.devices.cuda.jit import card_of
from services.task_executor.devices.cuda.paged_attention import PagedAttention, Shape
from services.task_executor.devices.cuda.tiles import choose_splits, choose_tiles


def attention_for(queries: torch.Tensor, kv: LayerKv, processors: int) -> PagedAttention:
    shape = Shape.of(queries, kv)
    tiles = choose_tiles(shape.group, shape.head_dim, queries.element_size())
    return PagedAttention(shape, tiles, choose_splits(shape.kv_heads, processors))


class TritonAttentionStep(AttentionStep):
    """Uploads its indexes at the first call: a step that a graph runs never makes one.

    No block is wiped: the kernels read no position that nobody wrote.
    """

    def __init__(
        self,
        inputs: AttentionInputs,
        device: Device,
        processors: int,
        indexes: PagedIndexes | None = None,
    ) -> None:
        """indexes: where they are on the device already; those of a graph are."""
        self.inputs = inputs
        self._device = device
        self._processors = processors
        self._indexes = indexes
        self._attention: PagedAttention | None = None

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kv: LayerKv,
        window: int | None,
    ) -> torch.Tensor:
        with card_of(queries):
            if self._attention is None:  # every layer has KV of one shape
                self._attention = attention_for(queries, kv, self._processors)
            attention = self._attention
            if self._indexes is None:
                per_item = attention.tokens_per_item
                self._indexes = upload(self.inputs, per_item, self._device.to_device)
            attention.write(keys, values, kv, self._indexes)
            return attention.attend(queries, kv, self._indexes, window)
