"""Random checkpoints in shapes that the NPU's kernels take; what they say is never near a tie."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deepflow.bench.random_model import Shape

WEIGHT_SPREAD = 0.15
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}


@dataclass(frozen=True, slots=True)
class Odd:
    """A shape, and how its config differs from a plain one."""

    shape: Shape
    config: dict[str, Any] = field(default_factory=dict)
    biases: tuple[tuple[str, int], ...] = ()


ODD: dict[str, Odd] = {
    "llama: gqa-2": Odd(Shape("LlamaForCausalLM", "llama", 96, 160, 2, 4, 2, 64, 257)),
    "qwen3: head norms, yarn rope, wide heads": Odd(
        Shape("Qwen3ForCausalLM", "qwen3", 64, 96, 3, 3, 1, 128, 211, True),
        {"rope_parameters": YARN_ROPE, "max_position_embeddings": 512},
    ),
    "qwen2: biases": Odd(
        Shape("Qwen2ForCausalLM", "qwen2", 96, 128, 2, 4, 4, 64, 257),
        biases=(("q_proj", 256), ("k_proj", 256), ("v_proj", 256)),
    ),
    "llama: gelu": Odd(
        Shape("LlamaForCausalLM", "llama", 64, 96, 1, 2, 2, 64, 131),
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
}


def write(name: str, folder: Path) -> Path:
    odd = ODD[name]
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for tensor, size in [*odd.shape.tensors(), *_biases(odd)]:
        if tensor.endswith("norm.weight"):
            tensors[tensor] = torch.rand(size, generator=generator) + 0.5
        else:
            tensors[tensor] = torch.randn(size, generator=generator) * WEIGHT_SPREAD
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(odd.shape.config | odd.config))
    return folder


def _biases(odd: Odd) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (f"model.layers.{layer}.self_attn.{name}.bias", (size,))
        for layer in range(odd.shape.layers)
        for name, size in odd.biases
    ]


def prompt(length: int, seed: int, vocabulary: int = 131) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (length,), generator=generator).tolist()
