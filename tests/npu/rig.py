"""A model on a device, driven step by step: the test says which tokens of which sequence run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionInputs, Device, KvShape
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

BLOCK_SIZE = 128
KV_BLOCKS = 24


@dataclass
class Running:
    """Its tokens, and which blocks hold them."""

    token_ids: list[int]
    blocks: list[int]
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)  # one a step that reached the end


class Rig:
    def __init__(
        self,
        folder: Path,
        device: Device,
        wrap: Callable[["Rig", Model], Model] | None = None,
    ) -> None:
        self.spec = ModelSpec.from_folder(folder)
        self.device = device
        device.check_model(self.spec)
        spec = self.spec
        shape = KvShape(spec.num_layers, KV_BLOCKS, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        self.kv = device.build_kv(shape)
        weights = SafetensorsFolder(folder, device.torch_device, device.dtype)
        model = load_dense(spec, weights, device)
        self.model: Model = model if wrap is None else wrap(self, model)

    @torch.inference_mode()
    def step(self, counts: Sequence[tuple[Running, int]]) -> torch.Tensor:
        """Run so many tokens of each sequence: fp32 logits of its last one, on the host."""
        token_ids, positions, slots = [], [], []
        for sequence, count in counts:
            for position in range(sequence.computed, sequence.computed + count):
                token_ids.append(sequence.token_ids[position])
                positions.append(position)
                block = sequence.blocks[position // BLOCK_SIZE]
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            sequence.computed += count
        hidden = self.model.forward(
            self.device.to_device(np.array(token_ids, dtype=np.int64)),
            self.device.to_device(np.array(positions, dtype=np.int64)),
            self.device.begin_attention(_inputs(counts, slots)),
            self.kv,
        )
        ends = np.cumsum([count for _, count in counts]) - 1
        logits = self.model.logits(hidden[self.device.to_device(ends.astype(np.int64))])
        assert logits.dtype == torch.float32
        return self.device.to_host(logits).get().clone()

    def advance(self, counts: Sequence[tuple[Running, int]]) -> torch.Tensor:
        """A step; a sequence that reached its end takes its likeliest token."""
        logits = self.step(counts)
        for (sequence, _), row in zip(counts, logits, strict=True):
            if sequence.computed == len(sequence.token_ids):
                sequence.logits.append(row)
                sequence.token_ids.append(int(row.argmax()))
        return logits


def _inputs(counts: Sequence[tuple[Running, int]], slots: list[int]) -> AttentionInputs:
    width = max(-(-sequence.computed // BLOCK_SIZE) for sequence, _ in counts)
    tables = torch.zeros(len(counts), width, dtype=torch.int32)
    for row, (sequence, _) in enumerate(counts):
        used = sequence.blocks[:width]
        tables[row, : len(used)] = torch.tensor(used, dtype=torch.int32)
    return AttentionInputs(
        block_size=BLOCK_SIZE,
        counts=[count for _, count in counts],
        lengths=[sequence.computed for sequence, _ in counts],
        block_tables=tables,
        slots=torch.tensor(slots),
    )


def run_mixed(rig: Rig, prompts: Sequence[list[int]], steps: int) -> list[Running]:
    """Prompts join one by one in two chunks each, while the earlier ones decode; then all decode.

    Blocks lie apart, and are not in order.
    """
    running: list[Running] = []
    for index, prompt in enumerate(prompts):
        sequence = Running(list(prompt), [1 + (5 * index + 7 * it) % 23 for it in range(3)])
        half = -(-len(prompt) // 2)
        for chunk in filter(None, (half, len(prompt) - half)):
            rig.advance([(sequence, chunk), *((it, 1) for it in running)])
        running.append(sequence)
    for _ in range(steps):
        rig.advance([(it, 1) for it in reversed(running)])
    return running
