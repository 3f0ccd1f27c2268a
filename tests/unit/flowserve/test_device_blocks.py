"""Blocks of a device as bytes and back: all layers, every bit, and nobody else's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from services.task_executor.devices.base import Event, HostCopy, KvShape, Stream
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.emulated.fingerprints import FingerprintCache
from services.task_executor.devices.plain import FinishedCopy, NullEvent, NullStream
from services.task_executor.flowserve.tiers.emulated_blocks import EmulatedBlocks
from services.task_executor.flowserve.tiers.pinned_blocks import PinnedBlocks, blocks_of
from services.task_executor.flowserve.tiers.torch_blocks import TorchBlocks


@pytest.mark.parametrize("kind", [TorchBlocks, PinnedBlocks])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_of_all_layers_moves_bit_for_bit(dtype: str, kind: type[TorchBlocks]) -> None:
    device = CpuDevice(dtype=dtype)
    kv = device.build_kv(KvShape(3, 5, 16, 2, 8))
    for layer in kv:
        for part in (layer.keys, layer.values):
            part.copy_(torch.randn(part.shape))
    kv[1].keys[2, 3, 1, 4] = float("nan")
    before = [part.clone() for layer in kv for part in (layer.keys, layer.values)]
    blocks = kind(device, kv)
    assert blocks.block_bytes == 3 * 2 * 16 * 2 * 8 * (4 if dtype == "float32" else 2)
    data = memoryview(bytearray(blocks.block_bytes))
    blocks.read(2, data)
    blocks.write(4, data)
    after = [part for layer in kv for part in (layer.keys, layer.values)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:4].view(torch.uint8), old[:4].view(torch.uint8))
        assert torch.equal(new[4].view(torch.uint8), old[2].view(torch.uint8))


class LoggedDevice(CpuDevice):
    """A CPU that says what its streams are told."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.at_wait: Callable[[], object] = bool
        self._names = iter(("reading", "writing"))

    def current_stream(self) -> Stream:
        return LoggedStream(self, "computing")

    def new_stream(self) -> Stream:
        return LoggedStream(self, next(self._names))


class LoggedEvent(NullEvent):
    def __init__(self, device: LoggedDevice, name: str) -> None:
        self.name = name
        self._device = device

    def wait(self) -> None:
        self._device.log.append(f"host waits for {self.name}")
        self._device.at_wait()


class LoggedStream(NullStream):
    def __init__(self, device: LoggedDevice, name: str) -> None:
        self._device, self._name = device, name

    @contextmanager
    def active(self) -> Iterator[None]:
        self._device.log.append(f"{self._name} begins")
        yield

    def record(self) -> LoggedEvent:
        return LoggedEvent(self._device, self._name)

    def follow(self, event: Event) -> None:
        assert isinstance(event, LoggedEvent)
        self._device.log.append(f"{self._name} follows {event.name}")


def test_blocks_of_an_accelerator_move_after_the_steps_and_before_they_are_told_of() -> None:
    device = LoggedDevice()
    kv = device.build_kv(KvShape(2, 3, 16, 1, 8))
    kv[1].values[1] = 7.0
    blocks = PinnedBlocks(device, kv)
    assert device.log == []
    data = memoryview(bytearray(blocks.block_bytes))
    untouched: list[bool] = []
    device.at_wait = lambda: untouched.append(not any(data))
    blocks.read(1, data)
    assert device.log == ["reading follows computing", "reading begins", "host waits for reading"]
    assert untouched == [True] and any(data)
    device.log.clear()
    blocks.write(2, data)
    assert device.log == ["writing follows computing", "writing begins", "host waits for writing"]
    assert torch.equal(kv[1].values[2], kv[1].values[1])


class Elsewhere(LoggedDevice):
    """Its tensors have no values."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_device = torch.device("meta")

    def to_host(self, tensor: torch.Tensor) -> HostCopy:
        return FinishedCopy(torch.empty_like(tensor, device="cpu"))


def test_only_accelerators_go_through_pinned_memory() -> None:
    device = CpuDevice()
    kv = device.build_kv(KvShape(1, 2, 16, 1, 8))
    assert type(blocks_of(device, kv)) is TorchBlocks
    assert type(blocks_of(Elsewhere(), kv)) is PinnedBlocks


def test_fingerprints_move_as_they_are() -> None:
    cache = FingerprintCache(4, 16, 8)
    cache.cells[:] = np.arange(64, dtype=np.uint64).reshape(4, 16)
    blocks = EmulatedBlocks(cache, 0.0)
    data = memoryview(bytearray(blocks.block_bytes))
    blocks.read(1, data)
    blocks.write(3, data)
    assert (cache.cells[3] == cache.cells[1]).all() and cache.cells[2, 0] == 32
