"""Every operation of a device that plain torch answers: what a device does not fuse, it inherits.

All of it computes where its tensors are, at once and in order: streams, events and copies that
take time exist only on devices that bring their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import (
    ALIGNMENT,
    DecodeGraph,
    Device,
    Event,
    Forward,
    HostCopy,
    KvShape,
    LayerKv,
    Stream,
)


class PlainDevice(Device):
    collectives = "gloo"
    graph_rows_max = 0

    def check_model(self, spec: ModelSpec) -> None:
        """Plain torch runs every shape."""

    def build_kv(self, shape: KvShape) -> list[LayerKv]:
        def zeros() -> torch.Tensor:
            return aligned_zeros(shape.layer_shape, self.dtype, self.torch_device)

        return [LayerKv(zeros(), zeros()) for _ in range(shape.num_layers)]

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float
    ) -> torch.Tensor:
        return F.rms_norm(inputs, inputs.shape[-1:], weight, epsilon)

    def add_rms_norm(
        self, inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = residual + inputs
        return self.rms_norm(total, weight, epsilon), total

    def lay_out_angles(self, cos: torch.Tensor, sin: torch.Tensor, scale: float) -> Any:
        """cos and sin, each [tokens, 1, head_dim / 2]"""
        return (cos * scale)[:, None].to(self.dtype), (sin * scale)[:, None].to(self.dtype)

    def rotate(self, heads: torch.Tensor, angles: Any) -> torch.Tensor:
        cos, sin = angles
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.torch_device, copy=True)

    def to_host(self, tensor: torch.Tensor) -> HostCopy:
        return FinishedCopy(tensor.cpu())

    def new_stream(self) -> Stream:
        return NullStream()

    def current_stream(self) -> Stream:
        return NullStream()

    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        raise NotImplementedError(f"the device {self.name} captures no graphs")


class PlainLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self._weight, self._bias)


class NullEvent:
    """Of a device on which everything is done when a call returns."""

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class NullStream:
    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def record(self) -> Event:
        return NullEvent()

    def follow(self, event: Event) -> None:
        event.wait()


class FinishedCopy:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def is_ready(self) -> bool:
        return True

    def get(self) -> torch.Tensor:
        return self._tensor


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory that any transfer can register: its address is a multiple of 2 MiB."""
    length = torch.Size(shape).numel() * dtype.itemsize
    buffer = torch.zeros(length + ALIGNMENT, dtype=torch.uint8, device=device)
    offset = -buffer.data_ptr() % ALIGNMENT
    return buffer[offset : offset + length].view(dtype).view(shape)
