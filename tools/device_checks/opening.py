"""The device on its card, or what stands in for it where there is none."""

import importlib
import importlib.util
import os
from collections.abc import Callable

import torch

from services.task_executor.devices.base import Device
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.cpu.memory import memory_available
from services.task_executor.devices.registry import DEVICES, TorchDevice

OpenDevice = Callable[[str], Device]  # by dtype
NAMES = ("npu", "cuda")


def on_card(name: str) -> OpenDevice:
    """It raises ValueError, which names what is missing."""

    def open_device(dtype: str) -> Device:
        entry = DEVICES.get(name)
        assert isinstance(entry, TorchDevice)
        return entry.open(None, dtype)

    return open_device


def on_cpu(dtype: str) -> Device:
    return CpuDevice(None, dtype)


def stand_in(name: str) -> tuple[OpenDevice, str]:
    """For a dry run, and what it is: where triton can be had, the kernels of cuda interpreted.

    That is slow, so a whole model is better left to the CPU's own.
    """
    if name == "cuda" and importlib.util.find_spec("triton") is not None:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
        return _interpreted, "cpu, operations in fp32 by cuda's interpreted kernels"
    return on_cpu, "cpu"


def _interpreted(dtype: str) -> Device:
    from services.task_executor.devices.cuda.triton_device import TritonDevice  # imports triton

    class Interpreted(TritonDevice):
        def memory_available(self) -> int:
            return memory_available()

    # Interpreted products of bf16 are wrong.
    return Interpreted(
        torch.device("cpu"), torch.float32, is_quantised=dtype == "int8", processors=4
    )
