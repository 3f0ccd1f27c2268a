"""Blocks of a device as bytes and back: all layers, every bit, and nobody else's."""

import numpy as np
import pytest
import torch

from services.task_executor.devices.base import KvShape
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.emulated.fingerprints import FingerprintCache
from services.task_executor.flowserve.tiers.emulated_blocks import EmulatedBlocks
from services.task_executor.flowserve.tiers.torch_blocks import TorchBlocks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_of_all_layers_moves_bit_for_bit(dtype: str) -> None:
    device = CpuDevice(dtype=dtype)
    kv = device.build_kv(KvShape(3, 5, 16, 2, 8))
    for layer in kv:
        for part in (layer.keys, layer.values):
            part.copy_(torch.randn(part.shape))
    kv[1].keys[2, 3, 1, 4] = float("nan")
    before = [part.clone() for layer in kv for part in (layer.keys, layer.values)]
    blocks = TorchBlocks(device, kv)
    assert blocks.block_bytes == 3 * 2 * 16 * 2 * 8 * (4 if dtype == "float32" else 2)
    data = memoryview(bytearray(blocks.block_bytes))
    blocks.read(2, data)
    blocks.write(4, data)
    after = [part for layer in kv for part in (layer.keys, layer.values)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:4].view(torch.uint8), old[:4].view(torch.uint8))
        assert torch.equal(new[4].view(torch.uint8), old[2].view(torch.uint8))


def test_fingerprints_move_as_they_are() -> None:
    cache = FingerprintCache(4, 16, 8)
    cache.cells[:] = np.arange(64, dtype=np.uint64).reshape(4, 16)
    blocks = EmulatedBlocks(cache, 0.0)
    data = memoryview(bytearray(blocks.block_bytes))
    blocks.read(1, data)
    blocks.write(3, data)
    assert (cache.cells[3] == cache.cells[1]).all() and cache.cells[2, 0] == 32
