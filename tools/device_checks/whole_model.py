"""A small random model from its folder to greedy tokens, eagerly and through a graph."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from deepflow.bench.random_model import Shape, write
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import (
    AttentionInputs,
    AttentionStep,
    DecodeGraph,
    Device,
    KvShape,
)
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.weights.safetensors_folder import SafetensorsFolder
from tools.device_checks.operations import BLOCK_SIZE

SHAPE = Shape("Qwen3ForCausalLM", "qwen3", 256, 512, 4, 4, 2, 128, 2000, has_qk_norm=True)
ROWS, BLOCKS_PER_ROW = 4, 4
PROMPT_LENGTHS = (126, 5, 260, 64)


@contextmanager
def checkpoint() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        write(SHAPE, Path(folder))
        yield Path(folder)


@dataclass
class Batch:
    """Rows of the same few prompts every time; each holds blocks of its own."""

    tokens: list[list[int]] = field(default_factory=list)
    computed: list[int] = field(default_factory=lambda: [0] * ROWS)

    def __post_init__(self) -> None:
        random = np.random.default_rng(3)
        self.tokens = [random.integers(3, 2000, size=length).tolist() for length in PROMPT_LENGTHS]

    def inputs(self, counts: list[int]) -> tuple[np.ndarray, np.ndarray, AttentionInputs]:
        """Of the next `counts` tokens of every row, which are computed then."""
        rows = [range(done, done + n) for done, n in zip(self.computed, counts, strict=True)]
        self.computed = [row.stop for row in rows]
        tables = 1 + torch.arange(ROWS * BLOCKS_PER_ROW, dtype=torch.int32).view(ROWS, -1)
        slots = [
            int(tables[row, at // BLOCK_SIZE]) * BLOCK_SIZE + at % BLOCK_SIZE
            for row, places in enumerate(rows)
            for at in places
        ]
        inputs = AttentionInputs(
            BLOCK_SIZE, counts, list(self.computed), tables, torch.tensor(slots)
        )
        ids = [self.tokens[row][at] for row, places in enumerate(rows) for at in places]
        positions = [at for places in rows for at in places]
        return np.array(ids, dtype=np.int64), np.array(positions, dtype=np.int64), inputs


class Runner:
    def __init__(self, folder: Path, device: Device) -> None:
        spec = ModelSpec.from_folder(folder)
        device.check_model(spec)
        weights = SafetensorsFolder(folder, device.torch_device, device.dtype)
        self._model = load_dense(spec, weights, device)
        blocks = 1 + ROWS * BLOCKS_PER_ROW
        self._kv = device.build_kv(
            KvShape(spec.num_layers, blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        )
        self._device = device
        self.batch = Batch()

    @torch.inference_mode()
    def prefill(self) -> torch.Tensor:
        return self._advance([len(row) for row in self.batch.tokens], None)

    @torch.inference_mode()
    def decode(self, graph: DecodeGraph | None = None) -> torch.Tensor:
        return self._advance([1] * ROWS, graph)

    @torch.inference_mode()
    def capture(self) -> DecodeGraph:
        return self._device.capture_decode(self._forward, ROWS, BLOCKS_PER_ROW)

    def _advance(self, counts: list[int], graph: DecodeGraph | None) -> torch.Tensor:
        """fp32 logits of every row's last token, whose likeliest follows it."""
        ids, positions, inputs = self.batch.inputs(counts)
        device = self._device
        tokens, places = device.to_device(ids), device.to_device(positions)
        if graph is None:
            hidden = self._forward(tokens, places, device.begin_attention(inputs))
        else:
            hidden = graph.replay(tokens, places, inputs)
        last = device.to_device(np.cumsum(counts).astype(np.int64) - 1)
        logits = device.to_host(self._model.logits(hidden[last])).get().clone()
        for row, best in zip(self.batch.tokens, logits.argmax(-1).tolist(), strict=True):
            row.append(best)
        return logits

    def _forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
    ) -> torch.Tensor:
        return self._model.forward(token_ids, positions, attention, self._kv)
