"""Llama 2 and 3, and the many models that share their shape."""

from deepflow.core.families.family import Family

LLAMA = Family(
    architecture="LlamaForCausalLM",
    max_positions=2048,
    bos_token_id=1,
    eos_token_id=2,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
)
