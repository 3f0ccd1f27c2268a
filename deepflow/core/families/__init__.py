"""The families of dense decoders, by the architecture name in config.json."""

from deepflow.core.families.family import Family
from deepflow.core.families.llama import LLAMA
from deepflow.core.families.mistral import MISTRAL
from deepflow.core.families.qwen2 import QWEN2
from deepflow.core.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {
    family.architecture: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)
}
