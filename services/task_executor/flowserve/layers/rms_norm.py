"""Root mean square norm."""

import torch
import torch.nn.functional as F


class RmsNorm:
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(inputs, self._weight.shape, self._weight, self._eps)
