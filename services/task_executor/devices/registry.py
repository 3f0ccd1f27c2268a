"""Every device by name; listing them imports nothing heavy."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deepflow.core.devices import CPU_DTYPES, CUDA_DTYPES, INT8, NPU_DTYPES
from services.task_executor.devices.base import Device
from services.task_executor.devices.emulated.profiles import (
    ASCEND_910B,
    H200,
    ZERO,
    AcceleratorProfile,
)

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Names to entries; an unknown name is answered with the list of known ones."""

    def __init__(self, kind: str, entries: dict[str, Entry]) -> None:
        self._kind = kind
        self._entries = entries

    def get(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(f"unknown {self._kind} {name!r}; known: {', '.join(self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        return list(self._entries)


class OpenDevice(Protocol):
    def __call__(self, threads: int | None, dtype: str = "", index: int = 0) -> Device:
        """Imports torch, sets its number of CPU threads; an empty dtype is the best one.

        `index`: which of the machine's devices of that kind; the CPU is one, whoever asks.
        """


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """A device that torch drives."""

    open: OpenDevice
    dtypes: tuple[str, ...]  # what it computes in, the best one first


def _open_cpu(threads: int | None, dtype: str = "", index: int = 0) -> Device:
    from services.task_executor.devices.cpu.device import CpuDevice  # imports torch

    return CpuDevice(threads, dtype or CPU_DTYPES[0])


def _open_npu(threads: int | None, dtype: str = "", index: int = 0) -> Device:
    from services.task_executor.devices.npu.opening import import_torch_npu

    asked = dtype or NPU_DTYPES[0]
    if asked not in NPU_DTYPES:
        raise ValueError(f"the device npu computes in {', '.join(NPU_DTYPES)}, not in {asked}")
    import_torch_npu(index)
    from services.task_executor.devices.npu.device import NpuDevice  # imports torch_npu

    return NpuDevice(threads, is_quantised=asked == INT8, index=index)


def _open_cuda(threads: int | None, dtype: str = "", index: int = 0) -> Device:
    from services.task_executor.devices.cuda.opening import check_cuda

    asked = dtype or CUDA_DTYPES[0]
    if asked not in CUDA_DTYPES:
        raise ValueError(f"the device cuda computes in {', '.join(CUDA_DTYPES)}, not in {asked}")
    check_cuda(index)
    import torch

    from services.task_executor.devices.cuda.device import CudaDevice  # imports triton

    is_quantised = asked == INT8
    floats = getattr(torch, CUDA_DTYPES[0] if is_quantised else asked)
    return CudaDevice(threads, floats, is_quantised=is_quantised, index=index)


DEVICES: Registry[TorchDevice | AcceleratorProfile] = Registry(
    "device",
    {
        "cpu": TorchDevice(_open_cpu, CPU_DTYPES),
        "npu": TorchDevice(_open_npu, NPU_DTYPES),
        "cuda": TorchDevice(_open_cuda, CUDA_DTYPES),
        **{f"emulated:{profile.name}": profile for profile in (ZERO, ASCEND_910B, H200)},
    },
)
