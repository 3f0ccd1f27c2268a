"""The CPU through torch: fp32 or bf16, packed oneDNN linears, attention by gather and SDPA."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    Device,
    KvShape,
    LayerKv,
)
from services.task_executor.devices.cpu.attention import CpuAttentionStep
from services.task_executor.devices.cpu.memory import memory_available

ALIGNMENT = 2 << 20


class CpuDevice(Device):
    name = "cpu"
    block_size = 16

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.torch_device = torch.device("cpu")
        self.dtype: torch.dtype = getattr(torch, dtype)

    def memory_available(self) -> int:
        return memory_available()

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        def zeros() -> torch.Tensor:
            return aligned_zeros(shape.layer_shape, self.dtype)

        return [LayerKv(zeros(), zeros()) for _ in range(shape.num_layers)]

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return CpuAttentionStep(inputs)

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        if _can_pack(weight.dtype):
            return OneDnnLinear(weight, bias)
        return PlainLinear(weight, bias)


def _can_pack(dtype: torch.dtype) -> bool:
    """oneDNN needs instructions for bf16 that not every CPU has."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PlainLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self._weight, self._bias)


class OneDnnLinear:
    """A weight reordered once into oneDNN's blocked layout; two to four times F.linear."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self._bias, "none", [], ""
        )
        return output


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that any transfer can register: its address is a multiple of 2 MiB."""
    length = torch.Size(shape).numel() * dtype.itemsize
    buffer = torch.zeros(length + ALIGNMENT, dtype=torch.uint8)
    offset = -buffer.data_ptr() % ALIGNMENT
    return buffer[offset : offset + length].view(dtype).view(shape)
