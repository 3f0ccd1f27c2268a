"""Layer normalisation with scale and shift."""

import torch
import torch.nn.functional as F


class LayerNorm:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> None:
        self._weight, self._bias = weight, bias
        self._epsilon = epsilon

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(hidden, self._weight.shape, self._weight, self._bias, self._epsilon)
