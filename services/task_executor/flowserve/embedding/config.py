"""Every number the embedding engine's decisions rest on, fixed once the model is known."""

from dataclasses import dataclass, fields, replace
from typing import Any

from deepflow.core.encoder_spec import EncoderSpec
from services.task_executor.flowserve.load_settings import check_settings

MAX_SEQUENCES_DEFAULT = 64
MAX_STEP_TOKENS_DEFAULT = 512
MAX_WAITING_DEFAULT = 4096
# Vectors of one step travel in one record, which must find room in the ring.
STEP_BYTES_MAX = 1 << 20
VALUE_BYTES = 4
# What a Load may say to any engine. An encoder holds no KV: those are not its settings.
_KV_SETTINGS = ("block_size", "kv_blocks", "kv_dram_bytes", "kv_disk_bytes")
_RANK_SETTINGS = ("tensor_parallel", "pipeline_parallel")


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
    kv_dtype: str = ""
    kv_dram_blocks: int = 0
    kv_disk_blocks: int = 0
    tensor_parallel: int = 1  # a text model's ways to be split; an encoder is whole
    pipeline_parallel: int = 1


def read_config(given: dict[str, int], spec: EncoderSpec, *, dtype: str) -> EmbeddingConfig:
    """Raises ValueError, which names the setting and what would be right."""
    known = ("max_tokens", "max_sequences", "max_step_tokens", "max_waiting", "cpu_threads")
    check_settings(given, known, spec.context_length, ignored=_KV_SETTINGS)
    fit = max(1, STEP_BYTES_MAX // (VALUE_BYTES * spec.embedding_size))
    own = {field.name for field in fields(EmbeddingConfig)} - {*_KV_SETTINGS, *_RANK_SETTINGS}
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
