"""A model whose decode steps replay captured graphs, once there are some.

Everything is served eagerly first. After a few decodes a thread captures one graph for each size
of batch beside the step loop, the size that runs now first; each is used from then on. A step of
another kind, or of more rows or blocks than any graph has, runs eagerly as before.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import torch

from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    DecodeGraph,
    Device,
    LayerKv,
)
from services.task_executor.flowserve.models.base import Model

log = logging.getLogger(__name__)

# So many decodes are served before anything is captured: start-up and its warm-up never pay.
DECODES_BEFORE_CAPTURE = 8

RunBeside = Callable[[Callable[[], None]], None]


def graph_sizes(rows_max: int) -> list[int]:
    """Rows of the graphs: powers of two, and the largest batch that there is."""
    sizes = [1 << power for power in range(rows_max.bit_length()) if 1 << power <= rows_max]
    return sizes if not sizes or sizes[-1] == rows_max else [*sizes, rows_max]


def size_for(sizes: Sequence[int], inputs: AttentionInputs, blocks_per_row: int) -> int | None:
    """The smallest graph that runs this step; None where none does."""
    if any(count != 1 for count in inputs.counts) or inputs.block_tables.shape[1] > blocks_per_row:
        return None
    return next((size for size in sizes if size >= len(inputs.counts)), None)


def capture_order(sizes: Sequence[int], wanted: int) -> list[int]:
    """The one that is wanted now, then from small to large."""
    return sorted(sizes, key=lambda size: (size != wanted, size))


def run_in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="capture-graphs", daemon=True).start()


class GraphedModel:
    def __init__(
        self,
        model: Model,
        device: Device,
        kv: list[LayerKv],
        *,
        max_sequences: int,
        blocks_per_row: int,
        run_beside: RunBeside = run_in_thread,
    ) -> None:
        self._model = model
        self._device = device
        self._kv = kv
        self._sizes = graph_sizes(min(max_sequences, device.graph_rows_max))
        self._blocks_per_row = blocks_per_row
        self._run_beside = run_beside
        self._graphs: dict[int, DecodeGraph] = {}
        self._decodes_left = DECODES_BEFORE_CAPTURE
        self.replays = 0

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionStep,
        kv: list[LayerKv],
    ) -> torch.Tensor:
        size = size_for(self._sizes, attention.inputs, self._blocks_per_row)
        if size is None:
            return self._model.forward(token_ids, positions, attention, kv)
        if graph := self._graphs.get(size):
            self.replays += 1
            return graph.replay(token_ids, positions, attention.inputs)
        self._count_decode(size)
        return self._model.forward(token_ids, positions, attention, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)

    def _count_decode(self, size: int) -> None:
        """Of those that ran eagerly though a graph could have run them."""
        self._decodes_left -= 1
        if self._decodes_left == 0:
            order = capture_order(self._sizes, size)
            self._run_beside(lambda: self._capture_all(order))

    @torch.inference_mode()
    def _capture_all(self, order: Sequence[int]) -> None:
        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
        ) -> torch.Tensor:
            return self._model.forward(token_ids, positions, attention, self._kv)

        for size in order:
            try:
                graph = self._device.capture_decode(forward, size, self._blocks_per_row)
            except Exception:  # whatever it is: all goes on as it went before
                log.exception("no graph for %d rows was captured; decodes stay eager", size)
                return
            self._graphs[size] = graph
        log.info("decodes of up to %d rows replay graphs", max(order))
