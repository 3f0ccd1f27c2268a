"""KV blocks of an accelerator: a block crosses as one copy, between pinned memory and a place on
the device where its layers are gathered and spread.

Small copies would each cost a start, and one to or from memory that is not pinned waits for the
device. The streams are the blocks' own, so that steps run beside them.
"""

from collections.abc import Sequence

import torch

from services.task_executor.devices.base import Device, LayerKv
from services.task_executor.flowserve.tiers.torch_blocks import TorchBlocks


class PinnedBlocks(TorchBlocks):
    def __init__(self, device: Device, kv: Sequence[LayerKv]) -> None:
        """From the thread whose current stream computes."""
        super().__init__(device, kv)
        self._computing = device.current_stream()
        # One each way, as there are streams.
        self._outgoing, self._incoming = self._new_pinned(device), self._new_pinned(device)

    @torch.inference_mode()
    def read(self, block: int, into: memoryview) -> None:
        self._reading.follow(self._computing.record())
        with self._reading.active():
            gathered = torch.stack([part[block] for part in self._tensors])
            self._outgoing.copy_(gathered, non_blocking=True)
            event = self._reading.record()
        event.wait()
        self._as_block(into).copy_(self._outgoing)

    @torch.inference_mode()
    def write(self, block: int, data: memoryview) -> None:
        self._incoming.copy_(self._as_block(data))
        # Whoever had the block before may still be read by steps that nobody waited for.
        self._writing.follow(self._computing.record())
        with self._writing.active():
            gathered = self._incoming.to(self._tensors[0].device, non_blocking=True)
            for part, row in zip(self._tensors, gathered, strict=True):
                part[block].copy_(row)
            event = self._writing.record()
        event.wait()

    def _new_pinned(self, device: Device) -> torch.Tensor:
        """What comes from the device lies in pinned memory."""
        shape = (len(self._tensors), *self._block_shape)
        place = torch.empty(shape, dtype=self._dtype, device=device.torch_device)
        return device.to_host(place).get()


def blocks_of(device: Device, kv: Sequence[LayerKv]) -> TorchBlocks:
    """The CPU's are in the host's memory already."""
    return (TorchBlocks if device.torch_device.type == "cpu" else PinnedBlocks)(device, kv)
