"""Linear layers in fp32 by kernels of our own, over weights packed once.

A kernel reads a weight as fast as it comes while it computes, which matters where few rows share
it; and a row's result has the same bits whatever rows are beside it.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from services.task_executor.devices.cpu.huge_pages import huge_empty
from services.task_executor.devices.cpu.native.background import BackgroundBuild

# The first that this CPU, its system and its compiler can have.
SOURCES = tuple(Path(__file__).with_name(name) for name in ("amx_linear.c", "packed_linear.c"))

_POINTER, _INT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


@dataclass(frozen=True, slots=True)
class Panels:
    """A packed weight. How it lies depends on the digits that its numbers need."""

    layout: int
    memory: torch.Tensor
    outputs: int


class PackedProducts:
    """The compiled functions."""

    def __init__(self, library: Path) -> None:
        """Raises OSError where it cannot be loaded."""
        loaded = ctypes.CDLL(str(library))
        self._pack, self._multiply = loaded.pack_weight, loaded.packed_linear
        self._pack.argtypes = [_INT, *[_POINTER] * 2, *[_INT] * 2, _THREADS]
        self._multiply.argtypes = [_INT, *[_POINTER] * 5, *[_INT] * 3, _THREADS]
        self._pack.restype = self._multiply.restype = None
        self._layout, self._panel_bytes = loaded.layout_of, loaded.panel_bytes
        self._room_bytes = loaded.room_bytes
        self._layout.argtypes = [_POINTER, _INT, _THREADS]
        self._panel_bytes.argtypes, self._room_bytes.argtypes = [_INT] * 3, [_INT] * 2
        for function in (self._layout, self._panel_bytes, self._room_bytes, loaded.prepare):
            function.restype = _INT
        if loaded.prepare():
            raise OSError("the system does not let it")

    def pack(self, weight: torch.Tensor) -> Panels:
        """fp32 [out, in]"""
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        threads = torch.get_num_threads()
        layout = self._layout(weight.data_ptr(), weight.numel(), threads)
        memory = huge_empty((self._panel_bytes(layout, outputs, inputs),), torch.uint8)
        self._pack(layout, weight.data_ptr(), memory.data_ptr(), outputs, inputs, threads)
        return Panels(layout, memory, outputs)

    def multiply(
        self,
        values: torch.Tensor,  # fp32 [rows, in], contiguous
        panels: Panels,
        bias: torch.Tensor | None,  # fp32 [out]
    ) -> torch.Tensor:
        """[rows, out]"""
        rows, inputs = values.shape
        room = torch.empty(self._room_bytes(rows, inputs), dtype=torch.uint8)
        result = torch.empty(rows, panels.outputs)
        self._multiply(
            panels.layout, values.data_ptr(), panels.memory.data_ptr(),
            None if bias is None else bias.data_ptr(), room.data_ptr(), result.data_ptr(),
            rows, inputs, panels.outputs, torch.get_num_threads(),
        )  # fmt: skip
        return result


class PackedLinear:
    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, products: PackedProducts
    ) -> None:
        self._panels = products.pack(weight)
        self._bias = None if bias is None else bias.contiguous()
        self._products = products

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dim() == 2 and inputs.is_contiguous():  # what decoders pass
            return self._products.multiply(inputs, self._panels, self._bias)
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        result = self._products.multiply(rows, self._panels, self._bias)
        return result.view(*inputs.shape[:-1], self._panels.outputs)


@cache
def begin_build() -> BackgroundBuild[PackedProducts]:
    """One for the process."""
    return BackgroundBuild(PackedProducts, *SOURCES)
