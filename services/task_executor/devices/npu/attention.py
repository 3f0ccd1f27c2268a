"""Paged attention on an NPU: one fused call a layer, prefill chunks and decodes mixed.

Lengths stay on the host, as lists: the kernel takes them so, and a tensor there would make every
call wait for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
import torch_npu

from services.task_executor.devices.base import AttentionInputs, AttentionStep, Device, LayerKv
from services.task_executor.devices.npu.limits import STEP_TOKENS_MAX

MASK_SIZE = 2048
_CAUSAL_FROM_THE_END = 3  # sparse_mode: the last query sees the last key


@dataclass(frozen=True, slots=True)
class PagedIndexes:
    """Where the tokens of a step stand, as the kernels want it."""

    slots: torch.Tensor  # int32 [tokens], on the device
    block_tables: torch.Tensor  # int32 [entries, blocks], on the device
    ends: Sequence[int]  # tokens of all entries up to and with each
    lengths: Sequence[int]  # context length of each entry


def causal_mask(device: torch.device) -> torch.Tensor:
    """One for all lengths: 1 is masked, and the kernel shifts it to where it needs it."""
    return torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.int8).triu(diagonal=1).to(device)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    kv: LayerKv,
    indexes: PagedIndexes,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Write, then attend: [tokens, heads, head_dim]."""
    torch_npu.npu_scatter_pa_kv_cache(
        keys.contiguous(),
        values.contiguous(),
        kv.keys,
        kv.values,
        indexes.slots,
        cache_mode="Norm",  # the default is another layout
    )
    blocks, block_size = kv.keys.shape[:2]
    _check(queries, indexes)
    attended: torch.Tensor = torch_npu.npu_fused_infer_attention_score(
        queries.contiguous(),
        kv.keys.view(blocks, block_size, -1),
        kv.values.view(blocks, block_size, -1),
        atten_mask=mask,
        block_table=indexes.block_tables,
        actual_seq_lengths=indexes.ends,
        actual_seq_lengths_kv=indexes.lengths,
        num_heads=queries.shape[1],
        num_key_value_heads=kv.keys.shape[2],
        scale=queries.shape[2] ** -0.5,
        input_layout="TND",
        block_size=block_size,
        sparse_mode=_CAUSAL_FROM_THE_END,
    )[0]
    return attended


def _check(queries: torch.Tensor, indexes: PagedIndexes) -> None:
    """The kernel answers each of these with the same error number."""
    entries = len(indexes.ends)
    assert indexes.ends[-1] == len(queries) <= STEP_TOKENS_MAX
    assert entries == len(indexes.lengths) == len(indexes.block_tables)


def fresh_blocks(inputs: AttentionInputs) -> npt.NDArray[np.int64]:
    """The blocks that the step writes from their first slot on."""
    slots: npt.NDArray[np.int64] = inputs.slots.numpy()
    firsts: npt.NDArray[np.int64] = slots[slots % inputs.block_size == 0]
    return firsts // inputs.block_size


def wipe(kv: LayerKv, blocks: torch.Tensor) -> None:
    """blocks: int64 [n] on the device."""
    kv.keys.index_fill_(0, blocks, 0)
    kv.values.index_fill_(0, blocks, 0)


class NpuAttentionStep(AttentionStep):
    """Uploads its indexes at the first call: a step that a graph runs never makes one."""

    def __init__(self, inputs: AttentionInputs, device: Device, mask: torch.Tensor) -> None:
        self.inputs = inputs
        self._device = device
        self._mask = mask
        self._indexes: PagedIndexes | None = None
        self._fresh: torch.Tensor | None = None

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kv: LayerKv,
        window: int | None,
    ) -> torch.Tensor:
        assert window is None or max(self.inputs.lengths) <= window
        if self._indexes is None:
            self._indexes = self._upload()
        if self._fresh is not None:
            wipe(kv, self._fresh)
        return attend(queries, keys, values, kv, self._indexes, self._mask)

    def _upload(self) -> PagedIndexes:
        inputs, to_device = self.inputs, self._device.to_device
        fresh = fresh_blocks(inputs)
        if len(fresh):
            self._fresh = to_device(fresh)
        return PagedIndexes(
            slots=to_device(inputs.slots.numpy().astype(np.int32)),
            block_tables=to_device(inputs.block_tables.numpy()),
            ends=list(accumulate(inputs.counts)),
            lengths=list(inputs.lengths),
        )


class GraphedAttentionStep(AttentionStep):
    """Inside a graph: the indexes lie where every replay finds its own."""

    def __init__(self, inputs: AttentionInputs, indexes: PagedIndexes, mask: torch.Tensor) -> None:
        self.inputs = inputs
        self._indexes = indexes
        self._mask = mask
        self.layers: list[LayerKv] = []  # in the order they were attended

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kv: LayerKv,
        window: int | None,
    ) -> torch.Tensor:
        self.layers.append(kv)
        return attend(queries, keys, values, kv, self._indexes, self._mask)
