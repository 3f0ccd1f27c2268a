"""Rotary position embedding, neox style: the two halves of a head turn against each other."""

import math
from typing import Any

import torch

from deepflow.core.rope_spec import RopeSpec
from services.task_executor.devices.base import Device


class Rotary:
    """Angles come from positions each step: a table over a long context would cost more memory."""

    def __init__(self, rope: RopeSpec, head_dim: int, device: Device) -> None:
        self._frequencies = inverse_frequencies(rope, head_dim).to(device.torch_device)
        self._scale = rope.attention_factor
        self._device = device

    def angles(self, positions: torch.Tensor) -> Any:
        """positions [tokens] -> what `rotate` takes for heads [tokens, heads, head_dim]."""
        angles = positions[:, None].float() * self._frequencies
        return self._device.lay_out_angles(angles.cos(), angles.sin(), self._scale)

    def rotate(self, heads: torch.Tensor, angles: Any) -> torch.Tensor:
        return self._device.rotate(heads, angles)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] in fp32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3(rope, frequencies)
        case "yarn":
            return _yarn(rope, frequencies)
    raise ValueError(f"unknown rope kind {rope.kind!r}")


def _llama3(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """Long waves are slowed by the factor, short ones kept, those between blended."""
    original = rope.original_context_length
    turns = original * frequencies / (2 * math.pi)  # within the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """Like llama3, but blended evenly over the dimensions between the two numbers of turns."""
    dims = len(frequencies)
    first, last = _dim_of(rope, rope.beta_fast, dims), _dim_of(rope, rope.beta_slow, dims)
    if rope.rounds_range:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * dims - 1)
    width = last - first or 0.001
    slowed = ((torch.arange(dims, dtype=torch.float32) - first) / width).clamp(0, 1)
    return slowed * frequencies / rope.factor + (1 - slowed) * frequencies


def _dim_of(rope: RopeSpec, turns: float, dims: int) -> float:
    """Which dimension, whole or not, turns so often within the original context."""
    wave = rope.original_context_length / (turns * 2 * math.pi)
    return dims * math.log(wave) / math.log(rope.theta)
