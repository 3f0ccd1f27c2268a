"""Root mean square norm, by itself or fused with the residual sum before it."""

import torch

from services.task_executor.devices.base import Device


class RmsNorm:
    def __init__(self, weight: torch.Tensor, eps: float, device: Device) -> None:
        self._weight, self._eps, self._device = weight, eps, device

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._device.rms_norm(inputs, self._weight, self._eps)

    def of_sum(
        self, inputs: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of their sum, and the sum: what later layers add to."""
        return self._device.add_rms_norm(inputs, residual, self._weight, self._eps)
