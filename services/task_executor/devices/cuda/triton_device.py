"""Every operation of the cuda device that needs no card: Triton's kernels over torch's tensors.

The tests open it on CPU tensors, where Triton interprets its kernels.
"""

from collections.abc import Callable
from typing import Any

import torch

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionInputs, AttentionStep, KvShape, LayerKv
from services.task_executor.devices.cuda import limits, row_operations
from services.task_executor.devices.cuda.attention import TritonAttentionStep
from services.task_executor.devices.cuda.linear import Int8Linear
from services.task_executor.devices.plain import PlainDevice, PlainLinear


class TritonDevice(PlainDevice):
    name = "cuda"
    block_size = limits.BLOCK_SIZE

    def __init__(
        self,
        torch_device: torch.device,
        dtype: torch.dtype,
        *,
        is_quantised: bool,
        processors: int,
    ) -> None:
        """processors: how many work at once on a card; enough work for each is made."""
        self.torch_device = torch_device
        self.dtype = dtype
        self.processors = processors
        self._is_quantised = is_quantised

    def check_model(self, spec: ModelSpec) -> None:
        if reason := limits.why_not(spec):
            raise ValueError(f"the device cuda cannot run this model: {reason}")

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        limits.check_cache(shape.layer_shape)
        return super().build_kv(shape)

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return TritonAttentionStep(inputs, self, self.processors)

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._is_quantised:
            return Int8Linear(weight, bias)
        return PlainLinear(weight, bias)

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> torch.Tensor:
        return row_operations.rms_norm(inputs, weight, epsilon)

    def add_rms_norm(
        self, inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return row_operations.add_rms_norm(inputs, residual, weight, epsilon)

    def lay_out_angles(self, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> Any:
        """cos and sin, each fp32 [tokens, head_dim / 2]"""
        return cos * scale, sin * scale

    def rotate(self, heads: torch.Tensor, angles: Any) -> torch.Tensor:
        return row_operations.rotate(heads, *angles)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        return row_operations.swiglu(gate_up)
