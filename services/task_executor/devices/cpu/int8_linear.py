"""Linear layers in int8: weights by output channel, activations by token while they pass.

A token has a scale of its own, so that its answer depends on nobody who shares the batch.
"""

from collections.abc import Callable

import torch

from services.task_executor.devices.cpu.int8_kernels import Int8Kernel
from services.task_executor.devices.cpu.native.row_operations import RowOperations

WEIGHT_LEVELS = 127
OUTPUTS_AT_A_TIME = 1024
# A row of zeros is divided by this; so small that no row of use is touched.
SCALE_MIN = 1e-30


def quantize_rows(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [rows, columns] -> int8 in -levels .. levels, and the scales [rows, 1].

    A row that is not finite has a scale that is not, and so has its product.
    """
    # Two passes that only read are faster than one that writes what another one reads.
    highest, lowest = values.amax(-1, keepdim=True), values.amin(-1, keepdim=True)
    scales = torch.maximum(highest, lowest.neg_()).clamp_(min=SCALE_MIN).div_(levels)
    return (values / scales).round_().to(torch.int8), scales


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [out, in] -> int8, and the scales [out]; in slices, for a quotient is a copy in fp32."""
    parts = [quantize_rows(part, WEIGHT_LEVELS) for part in torch.split(weight, OUTPUTS_AT_A_TIME)]
    return torch.cat([part for part, _ in parts]), torch.cat([scales[:, 0] for _, scales in parts])


class Int8Linear:
    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kernel: Int8Kernel,
        native: Callable[[], RowOperations | None] = lambda: None,
    ) -> None:
        """weight: fp32 [out, in]. `native` is asked each time: it may come later, or never."""
        self._native = native
        self._kernel = kernel
        self._packed = kernel.pack(*self._quantized_weight(weight))
        self._bias = bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, scales = self._quantized(inputs)
        product = self._kernel.multiply(rows, self._packed)
        output = product.mul_(scales) if product.is_contiguous() else product * scales
        return output if self._bias is None else output.add_(self._bias)

    def _quantized_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        native = self._native()
        if native is None or not native.fits(weight):
            return quantize_weight(weight)
        quantized, scales = native.quantize(weight, WEIGHT_LEVELS, SCALE_MIN)
        return quantized, scales[:, 0]

    def _quantized(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same bits either way."""
        native, levels = self._native(), self._kernel.levels
        if native is not None and native.fits(inputs):
            return native.quantize(inputs, levels, SCALE_MIN)
        return quantize_rows(inputs, levels)
