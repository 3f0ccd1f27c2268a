"""Random small checkpoints of every family in odd shapes, and what transformers answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
}
SMALL_YARN_ROPE = YARN_ROPE | {
    "rope_theta": 300.0,
    "beta_fast": 4,
    "beta_slow": 0.5,
    "truncate": False,
    "attention_factor": 0.9,
}
FULL, SLIDING = "full_attention", "sliding_attention"
# "<family>: what is odd about it" -> how its config differs from USUAL
SHAPES: dict[str, dict[str, Any]] = {
    "llama: plain": {},
    "llama: gqa-2, tied, wide heads": {
        "num_key_value_heads": 2,
        "head_dim": 40,
        "tie_word_embeddings": True,
    },
    "llama: gqa-4, biases, narrow heads": {
        "num_key_value_heads": 1,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama: gqa-2, llama3 rope, odd sizes": {
        "hidden_size": 60,
        "intermediate_size": 77,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 18,
        "vocab_size": 211,
        "rope_parameters": LLAMA3_ROPE,
    },
    "llama: linear rope, one layer, gelu": {
        "num_hidden_layers": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    },
    "mistral: no window, gqa-3, narrow heads": {
        "hidden_size": 72,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "sliding_window": None,
    },
    "mistral: window of 19, gqa-4, tied": {
        "num_key_value_heads": 1,
        "sliding_window": 19,
        "tie_word_embeddings": True,
    },
    "mistral: window of one block": {"sliding_window": 16, "num_hidden_layers": 3},
    "qwen2: gqa-2, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2: yarn rope, upper layers slide, gqa-3": {
        "hidden_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": YARN_ROPE,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen2: layers named one by one, gqa-4": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "use_sliding_window": True,
        "sliding_window": 21,
        "layer_types": [SLIDING, FULL, SLIDING],
    },
    "qwen3: gqa-2, tied, wide heads": {
        "num_key_value_heads": 2,
        "head_dim": 40,
        "tie_word_embeddings": True,
    },
    "qwen3: biases, yarn rope with every number": {
        "hidden_size": 56,
        "head_dim": 24,
        "attention_bias": True,
        "rope_parameters": SMALL_YARN_ROPE,
    },
    "qwen3: every other layer slides, gqa-3": {
        "hidden_size": 60,
        "intermediate_size": 77,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": [FULL, SLIDING, FULL, SLIDING],
    },
}
USUAL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 257,
    "max_position_embeddings": 160,
    # Far above the usual 0.02: answers must hang on the context, and near ties must be rare.
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Reference:
    token_ids: list[int]
    logprobs: list[float]


class Checkpoint:
    def __init__(self, folder: Path, shape: str, dtype: torch.dtype = torch.float32) -> None:
        """A random model of that shape, saved in several files."""
        self.folder = folder
        torch.manual_seed(1)
        config_class, model_class = FAMILIES[shape.partition(":")[0]]
        config = config_class(**(USUAL | SHAPES[shape]))
        model: Any = model_class(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
            elif name.endswith("norm.weight"):  # ones would hide that one is missing
                torch.nn.init.uniform_(parameter, 0.7, 1.3)
        model.to(dtype).save_pretrained(folder, max_shard_size="100KB")
        self._model_class: Any = model_class
        self.vocab_size: int = config.vocab_size
        self.reload()

    def reload(self) -> None:
        """Read the reference back in what the engine computes in."""
        load = self._model_class.from_pretrained
        self._model: Any = load(self.folder, dtype=torch.float32).eval()

    def prompt(self, length: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, self.vocab_size, (length,), generator=generator).tolist()

    @torch.no_grad()
    def greedy(self, prompt: list[int], max_tokens: int) -> Reference:
        output = self._model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            min_new_tokens=max_tokens,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        token_ids = output.sequences[0, len(prompt) :].tolist()
        rows = zip(output.logits, token_ids, strict=True)
        logprobs = [float(row[0].float().log_softmax(-1)[token]) for row, token in rows]
        return Reference(token_ids, logprobs)
