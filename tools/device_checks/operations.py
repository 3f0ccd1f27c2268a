"""Every operation of a device on the same numbers: each answers with fp32 rows on the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from services.task_executor.devices.base import AttentionInputs, Device, KvShape

BLOCK_SIZE = 128
HEADS, KV_HEADS = 4, 2
HEAD_DIMS = (64, 128, 192)


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    run: Callable[[Device], torch.Tensor]
    is_quantised: bool = False


class Numbers:
    """The same on every device: drawn on the host, rounded to what the card computes in."""

    def __init__(self, device: Device, seed: int = 1) -> None:
        self._device = device
        self._random = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        rounded = torch.from_numpy(values).bfloat16().float().numpy()
        return self._device.to_device(rounded).to(self._device.dtype)


def on_host(device: Device, tensor: torch.Tensor) -> torch.Tensor:
    return device.to_host(tensor).get().float()


def rms_norm(device: Device) -> torch.Tensor:
    draw = Numbers(device)
    return on_host(device, device.rms_norm(draw(7, 256), draw(256), 1e-6))


def rms_norm_of_heads(device: Device) -> torch.Tensor:
    return on_host(device, device.rms_norm(Numbers(device)(7, HEADS, 128), None, 1e-6))


def add_rms_norm(device: Device) -> torch.Tensor:
    draw = Numbers(device)
    normed, total = device.add_rms_norm(draw(7, 256), draw(7, 256), draw(256), 1e-6)
    return torch.cat((on_host(device, normed), on_host(device, total)))


def rotation(device: Device) -> torch.Tensor:
    """With a scale above 1, as yarn has it."""
    positions = np.array([0, 1, 77, 4095], dtype=np.float32)
    angles = positions[:, None] * np.power(10_000.0, -np.arange(64, dtype=np.float32) / 64)
    cos, sin = (device.to_device(part(angles).astype(np.float32)) for part in (np.cos, np.sin))
    laid_out = device.lay_out_angles(cos, sin, 1.25)
    return on_host(device, device.rotate(Numbers(device)(4, HEADS, 128), laid_out))


def swiglu(device: Device) -> torch.Tensor:
    return on_host(device, device.swiglu(Numbers(device)(7, 512)))


def linear(device: Device) -> torch.Tensor:
    """With one loud row, which must not cost the others their precision."""
    draw = Numbers(device)
    rows = draw(9, 256)
    rows[3] *= 64
    return on_host(device, device.pack_linear(draw(384, 256, scale=0.06), draw(384))(rows))


def upload_and_download(device: Device) -> torch.Tensor:
    values = np.arange(6000, dtype=np.int64).reshape(6, 1000)
    side = device.new_stream()
    with side.active():
        there = device.to_device(values)
    device.current_stream().follow(side.record())
    return on_host(device, there + 1)


def attention(head_dim: int) -> Callable[[Device], torch.Tensor]:
    """A prefill over one block's end, then a mixed step: a decode, a chunk, a decode."""

    def run(device: Device) -> torch.Tensor:
        draw = Numbers(device)
        (kv,) = device.build_kv(KvShape(1, 12, BLOCK_SIZE, KV_HEADS, head_dim))
        tables = torch.tensor([[7, 2, 9], [4, 11, 0], [5, 0, 0]], dtype=torch.int32)
        answers = []
        for counts, lengths in (([200, 127, 40], [200, 127, 40]), ([1, 33, 1], [201, 160, 41])):
            step = device.begin_attention(_inputs(counts, lengths, tables))
            tokens = sum(counts)
            parts = (draw(tokens, heads, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS))
            queries, keys, values = parts
            answers.append(on_host(device, step(queries, keys, values, kv, None)))
        return torch.cat(answers)

    return run


def _inputs(counts: list[int], lengths: list[int], tables: torch.Tensor) -> AttentionInputs:
    slots = [
        int(tables[entry, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
        for entry, (count, length) in enumerate(zip(counts, lengths, strict=True))
        for position in range(length - count, length)
    ]
    return AttentionInputs(BLOCK_SIZE, counts, lengths, tables, torch.tensor(slots))


OPERATIONS = (
    Operation("copies over a side stream", upload_and_download),
    Operation("rms_norm", rms_norm),
    Operation("rms_norm of heads", rms_norm_of_heads),
    Operation("add_rms_norm", add_rms_norm),
    Operation("rotate, scaled by 1.25", rotation),
    Operation("swiglu", swiglu),
    Operation("linear", linear),
    Operation("linear, W8A8", linear, is_quantised=True),
    *(Operation(f"paged attention, heads of {it}", attention(it)) for it in HEAD_DIMS),
)
