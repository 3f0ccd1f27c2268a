"""A model folder with random weights of a named shape: speed does not ask what a model knows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORED = ("float32", "bfloat16")  # what weights can be kept in
SEED = 20250101
SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    architecture: str
    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    has_qk_norm: bool = False

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every weight, as transformers saves them."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for index in range(self.layers):
            layer = f"model.layers.{index}."
            yield layer + "input_layernorm.weight", (self.hidden,)
            yield layer + "post_attention_layernorm.weight", (self.hidden,)
            yield layer + "self_attn.q_proj.weight", (queries, self.hidden)
            yield layer + "self_attn.k_proj.weight", (keys, self.hidden)
            yield layer + "self_attn.v_proj.weight", (keys, self.hidden)
            yield layer + "self_attn.o_proj.weight", (self.hidden, queries)
            if self.has_qk_norm:
                yield layer + "self_attn.q_norm.weight", (self.head_dim,)
                yield layer + "self_attn.k_norm.weight", (self.head_dim,)
            yield layer + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield layer + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield layer + "mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


SHAPES = {
    "llama-100m": Shape("LlamaForCausalLM", "llama", 768, 2048, 12, 12, 4, 64, 16_000),
    "qwen3-450m": Shape("Qwen3ForCausalLM", "qwen3", 1024, 3072, 24, 16, 8, 128, 32_000, True),
    "llama-15m": Shape("LlamaForCausalLM", "llama", 320, 864, 8, 5, 5, 64, 4_000),
}


def write(shape: Shape, folder: Path, stored: str = STORED[0]) -> None:
    """The same bytes every time."""
    import numpy as np  # late: only a benchmark without a model of its own needs these
    import torch
    from safetensors.torch import save_file

    random = np.random.default_rng(SEED)
    tensors = {}
    for name, size in shape.tensors():
        if len(size) == 1:
            values = np.ones(size, dtype=np.float32)
        else:
            values = random.standard_normal(size, dtype=np.float32) * np.float32(SPREAD)
        tensors[name] = torch.from_numpy(values).to(getattr(torch, stored))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = shape.config | {"torch_dtype": stored}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
