"""Linear layers: as they are, or in int8 with a scale per token and per output channel."""

import torch

from services.task_executor.devices.cuda import row_operations

# cuBLAS's int8 product wants more rows than 16, and sides that are multiples of the next.
ROWS_MIN = 17
SIDE_MULTIPLE = 16


class Int8Linear:
    """The product is exact, and all else is of a row: no row depends on the others."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        outputs, inputs = map(_to_multiple, weight.shape)
        self._weight, self._scales = row_operations.quantise(weight.contiguous(), outputs, inputs)
        self._bias = bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = max(len(inputs), ROWS_MIN)
        whole, scales = row_operations.quantise(inputs.contiguous(), rows, self._weight.shape[1])
        product = torch._int_mm(whole, self._weight.t())
        return row_operations.scale(product, scales, self._scales, self._bias, inputs.dtype)


def _to_multiple(size: int) -> int:
    return -(-size // SIDE_MULTIPLE) * SIDE_MULTIPLE
