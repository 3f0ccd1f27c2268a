"""CUDA cards: Triton's kernels beside streams, pinned copies and graphs for decodes.

Nothing of this has run on a card yet; `docs/devices.md` says what was tested, and how.
"""

from typing import Any

import torch

from services.task_executor.devices.base import DecodeGraph, Forward
from services.task_executor.devices.card import CardDevice
from services.task_executor.devices.cuda import limits
from services.task_executor.devices.cuda.graph import CudaDecodeGraph
from services.task_executor.devices.cuda.triton_device import TritonDevice


class CudaDevice(CardDevice, TritonDevice):
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
        device = torch.device("cuda", index)
        self.torch_device = device
        self._open(torch.cuda, index, threads)
        processors = torch.cuda.get_device_properties(index).multi_processor_count
        super().__init__(device, dtype, is_quantised=is_quantised, processors=processors)
        # Two, for what cuBLAS keeps for a stream must not be shared by a replay and a first call.
        self._warming, self._recording = self.new_stream(), self.new_stream()

    def _capture(self, forward: Forward, rows: int, blocks_per_row: int, pool: Any) -> DecodeGraph:
        return CudaDecodeGraph(
            self,
            forward,
            rows=rows,
            blocks_per_row=blocks_per_row,
            pool=pool,
            warming=self._warming.raw,
            capturing=self._recording.raw,
        )
