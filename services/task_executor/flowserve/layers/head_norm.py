"""Root mean square norm of each head by itself, with the head's own scale."""

import torch

from services.task_executor.devices.base import Device


class HeadNorm:
    def __init__(self, weights: torch.Tensor, eps: float, device: Device) -> None:
        """weights: [heads, head_dim], the heads in the order they come in."""
        self._weights, self._eps, self._device = weights, eps, device

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """[tokens, heads, head_dim], likewise back."""
        return self._device.rms_norm(heads, None, self._eps) * self._weights
