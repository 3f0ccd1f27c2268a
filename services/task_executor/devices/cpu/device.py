"""The CPU through torch: fp32, packed oneDNN linears, attention by gather and SDPA."""

from collections.abc import Callable
from pathlib import Path

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

KV_BYTES_DEFAULT = 1 << 30
ALIGNMENT = 2 << 20
_CGROUP = Path("/sys/fs/cgroup")


class CpuDevice(Device):
    name = "cpu"
    block_size = 16

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.torch_device = torch.device("cpu")
        # bf16 linears without AVX-512-BF16 are far slower than fp32: convert once, at load.
        self.dtype = torch.float32

    def kv_bytes_available(self) -> int:
        return min(KV_BYTES_DEFAULT, memory_available() // 4)

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        def zeros() -> torch.Tensor:
            return aligned_zeros(shape.layer_shape, self.dtype)

        return [LayerKv(zeros(), zeros()) for _ in range(shape.num_layers)]

    def begin_attention(self, inputs: AttentionInputs) -> AttentionStep:
        return CpuAttentionStep(inputs)

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return OneDnnLinear(weight, bias)
        return PlainLinear(weight, bias)


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


def memory_available() -> int:
    """What the machine has left, or the container where that is less."""
    available = _meminfo_available()
    limit, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo names no MemAvailable")


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such cgroup file, or "max"
        return None
