"""Ascend NPUs through torch_npu: fused kernels in bf16, int8 linears, graphs for decodes.

Nothing of this has run on a card yet; `docs/devices.md` says what was tested, and how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_npu

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    DecodeGraph,
    Forward,
    KvShape,
    LayerKv,
)
from services.task_executor.devices.card import CardDevice
from services.task_executor.devices.npu import limits
from services.task_executor.devices.npu.attention import NpuAttentionStep, causal_mask
from services.task_executor.devices.npu.graph import NpuDecodeGraph
from services.task_executor.devices.npu.linear import Int8Linear, can_quantise
from services.task_executor.devices.plain import PlainLinear


@dataclass(frozen=True, slots=True)
class NpuAngles:
    cos: torch.Tensor  # [1, tokens, 1, head_dim], the half that is stored twice
    sin: torch.Tensor  # likewise
    scale: float  # apart from them: the kernel takes nothing above 1


class NpuDevice(CardDevice):
    name = "npu"
    block_size = limits.BLOCK_SIZE
    collectives = "cpu:gloo,npu:hccl"
    graph_rows_max = limits.GRAPH_ROWS_MAX

    def __init__(
        self,
        threads: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        *,
        is_quantised: bool = False,
        index: int = 0,
    ) -> None:
        self.torch_device = torch.device("npu", index)
        self._open(torch_npu.npu, index, threads)
        self.dtype = dtype
        self._is_quantised = is_quantised
        self._mask = causal_mask(self.torch_device)
        self._ones: dict[int, torch.Tensor] = {}

    def check_model(self, spec: ModelSpec) -> None:
        if reason := limits.why_not(spec):
            raise ValueError(f"the device npu cannot run this model: {reason}")

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        limits.check_cache(shape.layer_shape)
        return super().build_kv(shape)

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return NpuAttentionStep(inputs, self, self._mask)

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._is_quantised and can_quantise(weight):
            return Int8Linear(weight, bias)
        return PlainLinear(weight, bias)

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> torch.Tensor:
        if weight is None:
            weight = self._ones_of(inputs.shape[-1])
        normed: torch.Tensor = torch_npu.npu_rms_norm(inputs, weight, epsilon)[0]
        return normed

    def add_rms_norm(
        self, inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, _, total = torch_npu.npu_add_rms_norm(inputs, residual, weight, epsilon)
        return normed, total

    def lay_out_angles(self, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> NpuAngles:
        def whole(half: torch.Tensor) -> torch.Tensor:
            return torch.cat((half, half), dim=-1).to(self.dtype)[None, :, None]

        return NpuAngles(whole(cos), whole(sin), scale)

    def rotate(self, heads: torch.Tensor, angles: NpuAngles) -> torch.Tensor:
        turned: torch.Tensor = torch_npu.npu_rotary_mul(
            heads[None], angles.cos, angles.sin, rotary_mode="half"
        )[0]
        return turned if angles.scale == 1 else turned * angles.scale

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch_npu.npu_swiglu(gate_up, dim=-1)
        return output

    def _capture(self, forward: Forward, rows: int, blocks_per_row: int, pool: Any) -> DecodeGraph:
        return NpuDecodeGraph(
            self, forward, self._mask, rows=rows, blocks_per_row=blocks_per_row, pool=pool
        )

    def _ones_of(self, size: int) -> torch.Tensor:
        if size not in self._ones:
            self._ones[size] = torch.ones(size, dtype=self.dtype, device=self.torch_device)
        return self._ones[size]
