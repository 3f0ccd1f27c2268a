"""Streams, events and pinned copies of a CUDA card, in the words of the device interface."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from services.task_executor.devices.base import Event


class CudaEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.raw = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.raw.record(stream)

    def is_done(self) -> bool:
        return bool(self.raw.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.raw.synchronize()


class CudaStream:
    def __init__(self, raw: torch.cuda.Stream) -> None:
        self.raw = raw

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.stream(self.raw):
            yield

    def record(self) -> Event:
        return CudaEvent(self.raw)

    def follow(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.raw.wait_event(event.raw)


class PinnedCopy:
    """From the device into pinned memory, on a stream of its own beside the computing one."""

    def __init__(self, tensor: torch.Tensor, computing: CudaStream, copying: CudaStream) -> None:
        copying.follow(computing.record())
        with copying.active():
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            # Its memory must not be given to others before the copy is over.
            tensor.record_stream(copying.raw)
        self._done = copying.record()

    def is_ready(self) -> bool:
        return self._done.is_done()

    def get(self) -> torch.Tensor:
        self._done.wait()
        return self._host
