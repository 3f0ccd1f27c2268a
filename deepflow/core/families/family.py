"""What tells one family of dense decoders from another; facts only, no tensor."""

from collections.abc import Callable
from dataclasses import dataclass

from deepflow.core.config_values import ConfigValues
from deepflow.core.families.windows import LayerWindows, no_windows

# A str names the key of config.json that decides; false where it is missing.
Flag = bool | str


@dataclass(frozen=True, slots=True)
class Family:
    """A default holds where config.json says nothing. All share the decoder around them: RMS
    norms, grouped-query attention with rotary positions, and a gated MLP."""

    architecture: str
    max_positions: int
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: the hidden size shared out among the heads
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    qkv_bias: Flag = False
    output_bias: Flag = False
    mlp_bias: Flag = False
    has_head_norms: bool = False  # each head of queries and keys is normed before it is turned
    windows: Callable[[ConfigValues, int], LayerWindows] = no_windows


def read_flag(config: ConfigValues, flag: Flag) -> bool:
    return config.flag(flag) if isinstance(flag, str) else flag
