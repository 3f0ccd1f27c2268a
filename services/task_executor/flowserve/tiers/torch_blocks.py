"""The KV blocks of a device that torch drives: all layers' keys and values of a block, one after
the other. Copied on a stream of their own, so that steps go on beside."""

from collections.abc import Sequence

import torch

from services.task_executor.devices.base import Device, LayerKv, Stream


class TorchBlocks:
    def __init__(self, device: Device, kv: Sequence[LayerKv]) -> None:
        self._tensors = [part for layer in kv for part in (layer.keys, layer.values)]
        self._dtype = self._tensors[0].dtype
        self._block_shape = self._tensors[0].shape[1:]
        self.block_bytes = sum(part[0].nbytes for part in self._tensors)
        # One each way, for there is a thread for each.
        self._reading, self._writing = device.new_stream(), device.new_stream()

    @torch.inference_mode()
    def read(self, block: int, into: memoryview) -> None:
        _move(self._reading, [(part[block], row) for part, row in self._rows(into)])

    @torch.inference_mode()
    def write(self, block: int, data: memoryview) -> None:
        _move(self._writing, [(row, part[block]) for part, row in self._rows(data)])

    def _rows(self, data: memoryview) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor of the cache, with its place in a block's bytes."""
        return list(zip(self._tensors, self._as_block(data), strict=True))

    def _as_block(self, data: memoryview) -> torch.Tensor:
        """[tensors of the cache, block_size, kv_heads, head_dim] over those bytes."""
        shape = (len(self._tensors), *self._block_shape)
        return torch.frombuffer(data, dtype=torch.uint8).view(self._dtype).view(shape)


def _move(stream: Stream, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with stream.active():
        for source, target in pairs:
            target.copy_(source, non_blocking=True)
        event = stream.record()
    event.wait()
