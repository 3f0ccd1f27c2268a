"""Random small Llama checkpoints in odd shapes, and what transformers answers with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa-2, tied, wide heads": {
        "num_key_value_heads": 2,
        "head_dim": 40,
        "tie_word_embeddings": True,
    },
    "gqa-4, biases, narrow heads": {
        "num_key_value_heads": 1,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "gqa-2, llama3 rope, odd sizes": {
        "hidden_size": 60,
        "intermediate_size": 77,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 18,
        "vocab_size": 211,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear rope, one layer": {
        "num_hidden_layers": 1,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
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
    def __init__(self, folder: Path, shape: dict[str, Any], dtype: torch.dtype) -> None:
        self.folder = folder
        torch.manual_seed(1)
        config = LlamaConfig(**(USUAL | shape))
        model: Any = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        model.to(dtype).save_pretrained(folder, max_shard_size="100KB")
        # Read back in what the engine computes in.
        load: Any = LlamaForCausalLM.from_pretrained
        self._model = load(folder, dtype=torch.float32).eval()
        self.vocab_size: int = config.vocab_size

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
