"""Qwen 3, dense: heads of 128 that are normed before they are turned."""

from deepflow.core.families.family import Family
from deepflow.core.families.windows import windows_by_layer

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    max_positions=32_768,
    kv_heads=32,
    head_dim=128,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    has_head_norms=True,
    windows=windows_by_layer,
)
