"""The CPU through torch: fp32, bf16 or int8, packed linears, paged attention."""

import os
from collections.abc import Callable

import torch

from deepflow.core.devices import INT8
from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    KvShape,
    LayerKv,
)
from services.task_executor.devices.cpu.attention import CpuAttentionStep
from services.task_executor.devices.cpu.cores import usable_cores
from services.task_executor.devices.cpu.huge_pages import huge_zeros
from services.task_executor.devices.cpu.int8_kernels import choose_kernel
from services.task_executor.devices.cpu.int8_linear import Int8Linear
from services.task_executor.devices.cpu.memory import memory_available
from services.task_executor.devices.cpu.native import (
    decode_attention,
    packed_linear,
    row_operations,
)
from services.task_executor.devices.plain import PlainDevice, PlainLinear


class CpuDevice(PlainDevice):
    name = "cpu"
    block_size = 16

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            threads = usable_cores()
        if threads is not None:
            torch.set_num_threads(threads)
        self.torch_device = torch.device("cpu")
        self._native = row_operations.begin_build()
        self._int8 = choose_kernel() if dtype == INT8 else None
        self.dtype: torch.dtype = torch.float32 if dtype == INT8 else getattr(torch, dtype)
        if self._int8 is None and self.dtype is torch.float32:
            packed_linear.begin_build()  # beside whatever else a start does

    def memory_available(self) -> int:
        return memory_available()

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        decode_attention.begin_build()  # by the time there are requests it is there

        def zeros() -> torch.Tensor:
            return huge_zeros(shape.layer_shape, self.dtype)

        return [LayerKv(zeros(), zeros()) for _ in range(shape.num_layers)]

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return CpuAttentionStep(inputs, decode_attention.begin_build().get())

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._int8 is not None:
            return Int8Linear(weight, bias, self._int8, self._native.get)
        if weight.dtype is torch.float32:
            # Awaited, for how a weight lies is settled now; from the second start on it is there.
            products = packed_linear.begin_build().wait()
            if products is not None:
                return packed_linear.PackedLinear(weight, bias, products)
        if _can_pack(weight.dtype):
            return OneDnnLinear(weight, bias)
        return PlainLinear(weight, bias)

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> torch.Tensor:
        native = self._native.get()
        if native is None or not native.fits(inputs, weight):
            return super().rms_norm(inputs, weight, epsilon)
        return native.rms_norm(inputs, weight, epsilon)

    def add_rms_norm(
        self, inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        native = self._native.get()
        if native is None or not native.fits(inputs, residual, weight):
            return super().add_rms_norm(inputs, residual, weight, epsilon)
        return native.add_rms_norm(inputs, residual, weight, epsilon)

    def rotate(
        self, heads: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        native = self._native.get()
        if native is None or not native.fits_heads(heads, angles[0]):
            return super().rotate(heads, angles)
        return native.rotate(heads, *angles)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        native = self._native.get()
        if native is None or not native.fits(gate_up):
            return super().swiglu(gate_up)
        return native.swiglu(gate_up)


def _can_pack(dtype: torch.dtype) -> bool:
    """oneDNN needs instructions for bf16 that not every CPU has."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
