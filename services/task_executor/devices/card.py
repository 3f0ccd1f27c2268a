"""What cards have in common that torch drives in the same words: torch.cuda and torch_npu.npu.

Streams, events, pinned copies, memory that is free, and the one capture that a process has at a
time. Nothing of this has run on a card yet; `docs/devices.md` says what was tested, and how.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from services.task_executor.devices.base import DecodeGraph, Event, Forward, HostCopy
from services.task_executor.devices.plain import PlainDevice


class CardDevice(PlainDevice):
    """Mixed into a device that adds its kernels and its graphs."""

    _runtime: Any  # torch.cuda or torch_npu.npu

    def _open(self, runtime: Any, index: int, threads: int | None) -> None:
        """Call it before anything touches the card."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._runtime = runtime
        runtime.set_device(index)
        self._index = index
        self._copying = self.new_stream()
        self._capturing = threading.Lock()
        self._graphs: WeakSet[Any] = WeakSet()

    def memory_available(self) -> int:
        runtime, device = self._runtime, self.torch_device
        free, _ = runtime.mem_get_info(device)
        # What the allocator holds and nobody uses is ours already.
        kept = runtime.memory_reserved(device) - runtime.memory_allocated(device)
        return int(free + kept)

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        pinned = torch.from_numpy(values).pin_memory()
        return pinned.to(self.torch_device, non_blocking=True)

    def to_host(self, tensor: torch.Tensor) -> HostCopy:
        return PinnedCopy(tensor, self.current_stream(), self._copying)

    def new_stream(self) -> "CardStream":
        return CardStream(self._runtime, self._runtime.Stream(self._index))

    def current_stream(self) -> "CardStream":
        return CardStream(self._runtime, self._runtime.current_stream(self._index))

    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        with self._capturing:  # the process has one capture at a time
            # A thread's current card is its own.
            self._runtime.set_device(self._index)
            graph = self._capture(forward, rows, blocks_per_row, self._shared_pool())
            self._graphs.add(graph)
            return graph

    def _capture(self, forward: Forward, rows: int, blocks_per_row: int, pool: Any) -> DecodeGraph:
        """A graph that keeps its memory in the pool, and names that `pool`."""
        raise NotImplementedError

    def _shared_pool(self) -> Any:
        """Graphs run one after the other, so they share memory. It goes with the last of them."""
        for graph in self._graphs:
            return graph.pool
        return self._runtime.graph_pool_handle()


class CardEvent:
    def __init__(self, runtime: Any, stream: Any) -> None:
        self.raw = runtime.Event()
        self.raw.record(stream)

    def is_done(self) -> bool:
        return bool(self.raw.query())

    def wait(self) -> None:
        self.raw.synchronize()


class CardStream:
    def __init__(self, runtime: Any, raw: Any) -> None:
        self._runtime = runtime
        self.raw = raw

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._runtime.stream(self.raw):
            yield

    def record(self) -> Event:
        return CardEvent(self._runtime, self.raw)

    def follow(self, event: Event) -> None:
        assert isinstance(event, CardEvent)
        self.raw.wait_event(event.raw)


class PinnedCopy:
    """From the card into pinned memory, on a stream of its own beside the computing one."""

    def __init__(self, tensor: torch.Tensor, computing: CardStream, copying: CardStream) -> None:
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
