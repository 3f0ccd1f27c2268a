"""Streams, events and pinned copies run torch_npu's own code; its runtime is the stubbed one."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch_npu

from services.task_executor.devices.base import KvShape
from services.task_executor.devices.card import CardStream
from services.task_executor.devices.npu.device import NpuDevice
from services.task_executor.flowserve.tiers.pinned_blocks import PinnedBlocks, blocks_of
from tests.npu.on_cpu import NpuOnCpu


@pytest.fixture(scope="module")
def device() -> NpuDevice:
    return NpuDevice(1)


def test_a_copy_goes_there_and_back_through_pinned_memory(device: NpuDevice) -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    there = device.to_device(values)
    assert there.device == device.torch_device and there.dtype == torch.int64
    copy = device.to_host(there)
    assert copy.is_ready()
    back = copy.get()
    assert (
        back.device.type == "cpu" and back.is_pinned() and torch.equal(back, torch.tensor(values))
    )


def test_an_upload_keeps_nothing_of_the_hosts_memory(device: NpuDevice) -> None:
    values = np.ones(4, dtype=np.int32)
    there = device.to_device(values)
    values[:] = 7
    assert device.to_host(there).get().tolist() == [1, 1, 1, 1]


def test_uploads_leave_from_pinned_memory(
    device: NpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From other memory a copy that waits for nobody is none."""
    sources: list[torch.Tensor] = []
    to = torch.Tensor.to

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert kwargs == {"non_blocking": True}
        sources.append(self)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    device.to_device(np.zeros(3, dtype=np.int64))
    assert [it.is_pinned() for it in sources] == [True]


def test_what_goes_to_the_host_waits_for_what_made_it(
    device: NpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copying stream follows the computing one, and the copied memory is kept for it."""
    followed: list[tuple[object, object]] = []
    kept: list[object] = []
    follow, record_stream = CardStream.follow, torch.Tensor.record_stream

    def noted_follow(self: CardStream, event: object) -> None:
        followed.append((self.raw, event))
        follow(self, event)  # type: ignore[arg-type]

    def noted_record(self: torch.Tensor, stream: object) -> None:
        kept.append(stream)
        record_stream(self, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(CardStream, "follow", noted_follow)
    monkeypatch.setattr(torch.Tensor, "record_stream", noted_record)
    device.to_host(device.to_device(np.zeros(3, dtype=np.int64))).get()
    ((copying, _),) = followed
    assert kept == [copying] and copying != torch_npu.npu.current_stream()


def test_work_goes_to_the_active_stream(device: NpuDevice) -> None:
    before = device.current_stream()
    side = device.new_stream()
    assert isinstance(side, CardStream)
    with side.active():
        assert device.current_stream().raw == side.raw
        there = device.to_device(np.ones(3, dtype=np.int64))
    assert device.current_stream().raw == before.raw
    event = side.record()
    before.follow(event)
    event.wait()
    assert event.is_done() and device.to_host(there).get().tolist() == [1, 1, 1]


def test_streams_are_a_threads_own(device: NpuDevice) -> None:
    seen: list[object] = []
    side = device.new_stream()
    with side.active():
        thread = threading.Thread(target=lambda: seen.append(device.current_stream().raw))
        thread.start()
        thread.join()
    assert isinstance(side, CardStream) and seen != [side.raw]


def test_memory_that_the_allocator_keeps_is_available(device: NpuDevice) -> None:
    size = 64 << 20
    before = device.memory_available()
    taken = torch.empty(size, dtype=torch.uint8, device=device.torch_device)
    between = device.memory_available()
    assert between <= before - size
    del taken
    assert device.memory_available() >= between + size


def test_kv_blocks_cross_through_pinned_memory_bit_for_bit(device: NpuDevice) -> None:
    with NpuOnCpu() as mode:
        kv = device.build_kv(KvShape(2, 4, 128, 2, 64))
        for index, layer in enumerate(kv):
            layer.keys[1].fill_(index + 1.5)
            layer.values[1].fill_(-index - 2.5)
        blocks = blocks_of(device, kv)
        assert isinstance(blocks, PinnedBlocks)
        data = memoryview(bytearray(blocks.block_bytes))
        blocks.read(1, data)
        blocks.write(3, data)
        parts = [part for layer in kv for part in (layer.keys, layer.values)]
        moved = [device.to_host(part).get() for part in parts]
    for part, value in zip(moved, (1.5, -2.5, 2.5, -3.5), strict=True):
        assert (part[3] == value).all() and not part[2].any()
    assert mode.without_kernel == set()
