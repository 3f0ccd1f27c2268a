"""The middle of a gated MLP: the activation of the gate, times what goes up."""

from collections.abc import Callable

import torch

from services.task_executor.devices.base import Device
from services.task_executor.flowserve.layers.activation import ACTIVATIONS

Gated = Callable[[torch.Tensor], torch.Tensor]
_FUSED = ("silu", "swish")


def gated_activation(name: str, device: Device) -> Gated:
    """[rows, 2 * inner], the gate first -> [rows, inner]."""
    return device.swiglu if name in _FUSED else _Unfused(name)


class _Unfused:
    def __init__(self, name: str) -> None:
        self._activation = ACTIVATIONS[name]

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self._activation(gate) * up
