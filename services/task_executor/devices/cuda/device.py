"""CUDA cards: Triton's kernels beside streams, pinned copies and graphs for decodes.

Nothing of this has run on a card yet; `docs/devices.md` says what was tested, and how.
"""

import threading
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from services.task_executor.devices.base import DecodeGraph, Forward, HostCopy, Stream
from services.task_executor.devices.cuda import limits
from services.task_executor.devices.cuda.graph import CudaDecodeGraph
from services.task_executor.devices.cuda.streams import CudaStream, PinnedCopy
from services.task_executor.devices.cuda.triton_device import TritonDevice


class CudaDevice(TritonDevice):
    collectives = "cpu:gloo,cuda:nccl"
    graph_rows_max = limits.GRAPH_ROWS_MAX

    def __init__(
        self,
        threads: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        *,
        is_quantised: bool = False,
        index: int = 0,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.cuda.set_device(index)
        processors = torch.cuda.get_device_properties(index).multi_processor_count
        super().__init__(
            torch.device("cuda", index), dtype, is_quantised=is_quantised, processors=processors
        )
        self._copying = _new_stream(index)
        # Two, for what cuBLAS keeps for a stream must not be shared by a replay and a first call.
        self._warming, self._capturing = _new_stream(index), _new_stream(index)
        self._capture = threading.Lock()
        self._graphs: WeakSet[CudaDecodeGraph] = WeakSet()

    def memory_available(self) -> int:
        device = self.torch_device
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator holds and nobody uses is ours already.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        pinned = torch.from_numpy(values).pin_memory()
        return pinned.to(self.torch_device, non_blocking=True)

    def to_host(self, tensor: torch.Tensor) -> HostCopy:
        return PinnedCopy(tensor, self.current_stream(), self._copying)

    def new_stream(self) -> Stream:
        return _new_stream(self.torch_device.index)

    def current_stream(self) -> CudaStream:
        return CudaStream(torch.cuda.current_stream(self.torch_device))

    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        with self._capture:  # the process has one capture at a time
            # A thread's current card is its own.
            torch.cuda.set_device(self.torch_device)
            graph = CudaDecodeGraph(
                self,
                forward,
                rows=rows,
                blocks_per_row=blocks_per_row,
                pool=self._shared_pool(),
                warming=self._warming.raw,
                capturing=self._capturing.raw,
            )
            self._graphs.add(graph)
            return graph

    def _shared_pool(self) -> Any:
        """Graphs run one after the other, so they share memory. It goes with the last of them."""
        for graph in self._graphs:
            return graph.pool
        return torch.cuda.graph_pool_handle()


def _new_stream(index: int) -> CudaStream:
    return CudaStream(torch.cuda.Stream(index))  # type: ignore[no-untyped-call]
