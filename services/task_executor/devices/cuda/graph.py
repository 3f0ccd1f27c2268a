"""A decode step as one CUDA graph: captured for a fixed number of rows, replayed for up to as many.

The kernels read lengths on the card, so that one graph runs contexts of any length.
"""

from typing import Any

import torch

from services.task_executor.devices.base import AttentionInputs, Forward
from services.task_executor.devices.cuda.decode_buffers import DecodeBuffers
from services.task_executor.devices.cuda.triton_device import TritonDevice


class CudaDecodeGraph:
    def __init__(
        self,
        device: TritonDevice,
        forward: Forward,
        *,
        rows: int,
        blocks_per_row: int,
        pool: Any,
        warming: torch.cuda.Stream,
        capturing: torch.cuda.Stream,
    ) -> None:
        """On two streams, neither of which is one that serves: what cuBLAS keeps for a stream would
        be shared by a replay and the first call of the next graph."""
        self.pool = pool
        with torch.cuda.stream(warming):
            self._buffers = DecodeBuffers(device, device.processors, rows, blocks_per_row)
            self._buffers.run(forward)  # kernels are compiled and loaded by a first call
        warming.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on launching and allocating meanwhile.
        with torch.cuda.graph(
            self._graph, pool=pool, stream=capturing, capture_error_mode="thread_local"
        ):
            self._output = self._buffers.run(forward)

    def replay(
        self, token_ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs
    ) -> torch.Tensor:
        self._buffers.fill(token_ids, positions, inputs)
        self._graph.replay()
        return self._output[: len(token_ids)]
