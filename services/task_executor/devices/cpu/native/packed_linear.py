"""Linear layers in fp32 by a kernel of our own, over weights packed once.

It reads a weight as fast as it comes while it computes, which matters where few rows share it; and
a row's result has the same bits whatever rows are beside it.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch

from services.task_executor.devices.cpu.huge_pages import huge_empty
from services.task_executor.devices.cpu.native.background import BackgroundBuild

SOURCE = Path(__file__).with_suffix(".c")

_POINTER, _INT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class PackedProducts:
    """The compiled functions."""

    def __init__(self, library: Path) -> None:
        """Raises OSError where it cannot be loaded."""
        loaded = ctypes.CDLL(str(library))
        self._pack, self._multiply = loaded.pack_weight, loaded.packed_linear
        self._pack.argtypes = [*[_POINTER] * 2, *[_INT] * 2, _THREADS]
        self._multiply.argtypes = [*[_POINTER] * 5, *[_INT] * 3, _THREADS]
        self._pack.restype = self._multiply.restype = None
        loaded.panel_width.restype = _INT
        self._width: int = loaded.panel_width()

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """fp32 [out, in] -> panels."""
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        panels = huge_empty((-(-outputs // self._width), inputs, self._width), weight.dtype)
        threads = torch.get_num_threads()
        self._pack(weight.data_ptr(), panels.data_ptr(), outputs, inputs, threads)
        return panels

    def multiply(
        self,
        values: torch.Tensor,  # fp32 [rows, in], contiguous
        panels: torch.Tensor,
        bias: torch.Tensor | None,  # fp32 [out]
        outputs: int,
    ) -> torch.Tensor:
        """[rows, out]"""
        rows, inputs = values.shape
        turned, result = torch.empty(rows * inputs), torch.empty(rows, outputs)
        self._multiply(
            values.data_ptr(), panels.data_ptr(), None if bias is None else bias.data_ptr(),
            turned.data_ptr(), result.data_ptr(), rows, inputs, outputs, torch.get_num_threads(),
        )  # fmt: skip
        return result


class PackedLinear:
    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, products: PackedProducts
    ) -> None:
        self._outputs = len(weight)
        self._panels = products.pack(weight)
        self._bias = None if bias is None else bias.contiguous()
        self._products = products

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.dim() == 2 and inputs.is_contiguous():  # what decoders pass
            return self._products.multiply(inputs, self._panels, self._bias, self._outputs)
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        result = self._products.multiply(rows, self._panels, self._bias, self._outputs)
        return result.view(*inputs.shape[:-1], self._outputs)


@cache
def begin_build() -> BackgroundBuild[PackedProducts]:
    """One for the process."""
    return BackgroundBuild(SOURCE, PackedProducts)
