"""Mistral 7B and its kin: no biases, and in early versions a window over all layers."""

from deepflow.core.families.family import Family
from deepflow.core.families.windows import one_window

MISTRAL = Family(
    architecture="MistralForCausalLM",
    max_positions=131_072,
    kv_heads=8,
    bos_token_id=1,
    eos_token_id=2,
    windows=one_window,
)
