"""Qwen 2 and 2.5: queries, keys and values have biases, whatever the config says."""

from deepflow.core.families.family import Family
from deepflow.core.families.windows import windows_by_layer

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    max_positions=32_768,
    kv_heads=32,
    qkv_bias=True,
    windows=windows_by_layer,
)
