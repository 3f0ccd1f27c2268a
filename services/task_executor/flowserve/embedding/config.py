"""Every number the embedding engine's decisions rest on, fixed once the model is known."""

from dataclasses import dataclass, fields, replace
from typing import Any

from deepflow.core.encoder_spec import EncoderSpec

MAX_SEQUENCES_DEFAULT = 64
MAX_STEP_TOKENS_DEFAULT = 512
MAX_WAITING_DEFAULT = 4096
# Vectors of one step travel in one record, which must find room in the ring.
STEP_BYTES_MAX = 1 << 20
VALUE_BYTES = 4
# What a Load may say to any engine. An encoder holds no KV: those are not its settings.
_KV_SETTINGS = ("block_size", "kv_blocks")


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    vocab_size: int
    embedding_size: int
    max_tokens: int  # of one text
    max_sequences: int = MAX_SEQUENCES_DEFAULT  # texts in one step
    max_step_tokens: int = MAX_STEP_TOKENS_DEFAULT  # a longer text runs alone
    max_waiting: int = MAX_WAITING_DEFAULT  # texts queued; one more is refused
    dtype: str = "float32"
    weight_bytes: int = 0
    kv_bytes: int = 0
    block_size: int = 0  # no KV is held
    kv_blocks: int = 0
    model_revision: str = ""
    kv_layout: str = ""


def read_config(given: dict[str, int], spec: EncoderSpec, *, dtype: str) -> EmbeddingConfig:
    """Raises ValueError, which names the setting and what would be right."""
    known = ("max_tokens", "max_sequences", "max_step_tokens", "max_waiting", "cpu_threads")
    unknown = sorted(given.keys() - {*known, *_KV_SETTINGS})
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(known)}")
    for key, value in given.items():
        if value < 1:
            raise ValueError(f"setting {key} must be positive, not {value}")
    if given.get("max_tokens", 0) > spec.context_length:
        raise ValueError(
            f"setting max_tokens is {given['max_tokens']}, "
            f"but a text of this model holds at most {spec.context_length}"
        )
    fit = max(1, STEP_BYTES_MAX // (VALUE_BYTES * spec.embedding_size))
    own = {field.name for field in fields(EmbeddingConfig)} - set(_KV_SETTINGS)
    settings: dict[str, Any] = {key: value for key, value in given.items() if key in own}
    wanted = settings.pop("max_sequences", MAX_SEQUENCES_DEFAULT)
    usual = EmbeddingConfig(
        vocab_size=spec.vocab_size,
        embedding_size=spec.embedding_size,
        max_tokens=spec.context_length,
        max_sequences=min(wanted, fit),
        dtype=dtype,
        weight_bytes=spec.parameters * VALUE_BYTES,
    )
    return replace(usual, **settings)
