"""Norms, SwiGLU, rotary positions and quantising by row, each in one pass; torch takes several."""

import ctypes
from functools import cache
from pathlib import Path

import torch

from services.task_executor.devices.cpu.native.background import BackgroundBuild

SOURCE = Path(__file__).with_suffix(".c")

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class RowOperations:
    """The compiled functions; they take what `fits`."""

    def __init__(self, library: Path) -> None:
        """Raises OSError where it cannot be loaded."""
        loaded = ctypes.CDLL(str(library))
        self._quantize, self._norm = loaded.quantize_rows, loaded.rms_norm
        self._swiglu, self._rotate = loaded.swiglu, loaded.rotate
        threads = ctypes.c_int32
        self._quantize.argtypes = [*[_POINTER] * 3, _INT, _INT, _FLOAT, _FLOAT, threads]
        self._norm.argtypes = [*[_POINTER] * 5, _INT, _INT, _FLOAT, threads]
        self._swiglu.argtypes = [*[_POINTER] * 2, _INT, _INT, threads]
        self._rotate.argtypes = [*[_POINTER] * 4, *[_INT] * 4, threads]
        for function in (self._quantize, self._norm, self._swiglu, self._rotate):
            function.restype = None

    @staticmethod
    def fits(*tensors: torch.Tensor | None) -> bool:
        return all(
            it is None or (it.dtype is torch.float32 and it.is_contiguous()) for it in tensors
        )

    def quantize(
        self, values: torch.Tensor, levels: int, scale_min: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, columns] -> int8 in -levels .. levels, and the scales [rows, 1]."""
        rows, columns = values.shape
        quantized = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows, 1)
        self._quantize(
            values.data_ptr(), quantized.data_ptr(), scales.data_ptr(), rows, columns,
            levels, scale_min, torch.get_num_threads(),
        )  # fmt: skip
        return quantized, scales

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> torch.Tensor:
        return self._normed(inputs, None, weight, None, epsilon)

    def add_rms_norm(
        self, inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.empty(inputs.shape)
        return self._normed(inputs, residual, weight, total, epsilon), total

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        columns = gate_up.shape[-1] // 2
        output = torch.empty(*gate_up.shape[:-1], columns)
        rows = output.numel() // columns
        self._swiglu(gate_up.data_ptr(), output.data_ptr(), rows, columns, torch.get_num_threads())
        return output

    @staticmethod
    def fits_heads(heads: torch.Tensor, cos: torch.Tensor) -> bool:
        """The heads of a token lie side by side, whatever is between two tokens."""
        are_floats = heads.dtype is torch.float32 and cos.dtype is torch.float32
        return are_floats and heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]

    def rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """heads: [tokens, heads, head_dim]; cos and sin: [tokens, 1, head_dim / 2], contiguous."""
        tokens, count, width = heads.shape
        output = torch.empty(tokens, count, width)
        self._rotate(
            heads.data_ptr(), cos.data_ptr(), sin.data_ptr(), output.data_ptr(),
            tokens, count, width // 2, heads.stride(0), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def _normed(
        self,
        inputs: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor | None,
        total: torch.Tensor | None,
        epsilon: float,
    ) -> torch.Tensor:
        normed, columns = torch.empty(inputs.shape), inputs.shape[-1]
        given = (inputs, residual, weight, total, normed)
        self._norm(
            *(None if it is None else it.data_ptr() for it in given),
            inputs.numel() // columns, columns, epsilon, torch.get_num_threads(),
        )  # fmt: skip
        return normed


@cache
def begin_build() -> BackgroundBuild[RowOperations]:
    """One for the process."""
    return BackgroundBuild(RowOperations, SOURCE)
