"""Root mean square norm of each head by itself, with the head's own scale."""

import torch
import torch.nn.functional as F


class HeadNorm:
    def __init__(self, weights: torch.Tensor, eps: float) -> None:
        """weights: [heads, head_dim], the heads in the order they come in."""
        self._weights, self._eps = weights, eps

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim], likewise back."""
        return F.rms_norm(heads, heads.shape[-1:], None, self._eps) * self._weights
