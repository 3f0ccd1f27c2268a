"""Streams, events and copies of the card: in order where one follows, beside each other else."""

import numpy as np
import pytest
import torch

from services.task_executor.devices.base import ALIGNMENT, Device, KvShape
from services.task_executor.flowserve.tiers.pinned_blocks import PinnedBlocks, blocks_of

pytestmark = pytest.mark.gpu

BUSY_CYCLES = 500_000_000  # a quarter of a second


def keep_busy() -> None:
    """The current stream, beside a host that goes on."""
    torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]


def test_a_copy_goes_there_and_back_through_pinned_memory(device: Device) -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    there = device.to_device(values)
    assert there.device == device.torch_device and there.dtype == torch.int64
    values[:] = 7  # nothing of the host's memory is kept
    back = device.to_host(there).get()
    assert back.is_pinned() and back.tolist() == np.arange(12).reshape(3, 4).tolist()


def test_nobody_waits_for_a_copy_until_it_is_asked_for(device: Device) -> None:
    keep_busy()
    copy = device.to_host(device.to_device(np.arange(5)) + 1)
    assert not copy.is_ready()
    assert copy.get().tolist() == [1, 2, 3, 4, 5] and copy.is_ready()


def test_two_streams_run_beside_each_other(device: Device) -> None:
    busy, free = device.new_stream(), device.new_stream()
    with busy.active():
        keep_busy()
        held = busy.record()
    with free.active():
        done = device.to_device(np.ones(3)) + 1
        event = free.record()
    event.wait()
    assert not held.is_done() and done.tolist() == [2.0, 2.0, 2.0]
    held.wait()
    assert held.is_done()


def test_who_follows_comes_after(device: Device) -> None:
    first, second = device.new_stream(), device.new_stream()
    values = device.to_device(np.zeros(4))
    first.follow(device.current_stream().record())
    with first.active():
        keep_busy()
        values += 3
    second.follow(first.record())
    with second.active():
        values *= 2
        copy = device.to_host(values)
    assert copy.get().tolist() == [6.0] * 4


def test_kv_is_aligned_for_transfers_and_counts_as_taken(device: Device) -> None:
    before = device.memory_available()
    layers = device.build_kv(KvShape(2, 64, 16, 8, 128))
    parts = [part for layer in layers for part in (layer.keys, layer.values)]
    assert all(part.data_ptr() % ALIGNMENT == 0 and not part.any() for part in parts)
    assert device.memory_available() <= before - sum(part.nbytes for part in parts)


def test_blocks_move_to_the_host_and_back_bit_for_bit(device: Device) -> None:
    kv = device.build_kv(KvShape(3, 5, 16, 2, 8))
    for index, layer in enumerate(kv):
        layer.keys.copy_(torch.randn(layer.keys.shape, generator=torch.manual_seed(index)))
        layer.values.copy_(torch.randn(layer.values.shape))
    blocks = blocks_of(device, kv)
    assert isinstance(blocks, PinnedBlocks) and blocks._outgoing.is_pinned()
    data = memoryview(bytearray(blocks.block_bytes))
    blocks.read(2, data)
    blocks.write(4, data)
    for layer in kv:
        assert torch.equal(layer.keys[4], layer.keys[2])
        assert torch.equal(layer.values[4], layer.values[2])
        assert not torch.equal(layer.keys[3], layer.keys[2])
