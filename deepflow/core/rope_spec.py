"""How positions turn the heads: the rotary embedding of a config.json, in any spelling."""

import math
from dataclasses import dataclass

from deepflow.core.config_values import SIZE_MAX, ConfigValues

ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """What lies below theta only matters to the kinds that scale."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    # llama3: in turns within the original context
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192
    # yarn
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    rounds_range: bool = True
    attention_factor: float = 1.0  # cosines and sines are multiplied with it

    def context_length(self, max_positions: int) -> int:
        """Authors mostly write the length before the scaling, which is there to exceed it."""
        stretched = max_positions
        if self.kind == "linear":
            stretched = int(max_positions * self.factor)
        if self.kind == "yarn":
            stretched = max(max_positions, int(self.original_context_length * self.factor))
        return max(1, min(stretched, SIZE_MAX))


def read_rope(config: ConfigValues, max_positions: int) -> RopeSpec:
    """`rope_parameters` since transformers 5; `rope_theta` and `rope_scaling` before."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.object(key)
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise config.error(f"{key} that differ by kind of layer are not supported")
    if config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1)) not in (1, None):
        raise config.error("partial_rotary_factor other than 1 is not supported")
    spelled = "rope_type" if "rope_type" in rope else "type"
    kind = rope.choice(spelled, ROPE_KINDS, "default", name="rope type")
    theta = rope.number("rope_theta", config.number("rope_theta", 10_000.0))
    match kind:
        case "linear":
            _require(rope, kind, "factor")
            return RopeSpec(kind, theta, rope.number("factor"))
        case "llama3":
            return _read_llama3(rope, theta, _original(config, rope, max_positions))
        case "yarn":
            return _read_yarn(rope, theta, _original(config, rope, max_positions), max_positions)
    return RopeSpec(kind, theta)


def _original(config: ConfigValues, rope: ConfigValues, max_positions: int) -> int:
    key = "original_max_position_embeddings"
    return config.size(key, rope.size(key, max_positions))


def _read_llama3(rope: ConfigValues, theta: float, original: int) -> RopeSpec:
    _require(rope, "llama3", "factor", "low_freq_factor", "high_freq_factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not low < high:
        raise rope.error(f"high_freq_factor ({high}) must be above low_freq_factor ({low})")
    return RopeSpec("llama3", theta, rope.number("factor"), low, high, original)


def _read_yarn(rope: ConfigValues, theta: float, original: int, max_positions: int) -> RopeSpec:
    if theta == 1:
        raise rope.error("rope type 'yarn' needs a rope_theta other than 1")
    factor = rope.number("factor", max_positions / original)
    fast, slow = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0  # 0: the usual
    values = ConfigValues(rope.path, rope.values | {"beta_fast": fast, "beta_slow": slow})
    return RopeSpec(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_context_length=original,
        beta_fast=values.number("beta_fast"),
        beta_slow=values.number("beta_slow"),
        rounds_range=rope.flag("truncate", default=True),
        attention_factor=rope.number("attention_factor", _usual_attention_factor(rope, factor)),
    )


def _usual_attention_factor(rope: ConfigValues, factor: float) -> float:
    """Longer contexts flatten attention; this sharpens it again."""

    def sharpness(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return sharpness(rope.number("mscale")) / sharpness(rope.number("mscale_all_dim"))
    return sharpness(1.0)


def _require(rope: ConfigValues, kind: str, *keys: str) -> None:
    for key in keys:
        if rope.get(key) is None:
            raise rope.error(f"rope type {kind!r} needs {key}")
