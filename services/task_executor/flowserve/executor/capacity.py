"""How many sequences, tokens and blocks an engine takes: settings first, then what fits."""

from dataclasses import dataclass

from deepflow.core.model_spec import ModelSpec, model_revision
from services.task_executor.devices.base import Device
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Load

# More only makes the prefix index large: a million tokens in blocks of 16.
KV_BLOCKS_DEFAULT_MAX = 65_536
MAX_WAITING_DEFAULT = 4096
KV_LAYOUT = "blocks-tokens-heads-dim"
EMULATED_LAYOUT = "fingerprints"


@dataclass(frozen=True, slots=True)
class Defaults:
    max_sequences: int
    max_step_tokens: int


TORCH_DEFAULTS = Defaults(max_sequences=64, max_step_tokens=512)
EMULATED_DEFAULTS = Defaults(max_sequences=256, max_step_tokens=8192)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a Load may set; cpu_threads is read by whoever opens the device."""

    block_size: int
    max_sequences: int
    max_step_tokens: int
    max_tokens: int
    max_waiting: int = MAX_WAITING_DEFAULT
    kv_blocks: int | None = None
    cpu_threads: int | None = None

    @classmethod
    def read(
        cls, given: dict[str, int], spec: ModelSpec, defaults: Defaults, block_size: int
    ) -> "Settings":
        unknown = sorted(given.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"unknown settings: {', '.join(unknown)}; known: {known}")
        for key, value in given.items():
            if value < 1:
                raise ValueError(f"setting {key} must be positive, not {value}")
        if given.get("max_tokens", 0) > spec.context_length:
            raise ValueError(
                f"setting max_tokens is {given['max_tokens']}, "
                f"but the model's context holds {spec.context_length}"
            )
        usual = {
            "block_size": block_size,
            "max_sequences": defaults.max_sequences,
            # Every row runs one token a step, so that none stands still.
            "max_step_tokens": max(
                defaults.max_step_tokens, given.get("max_sequences", defaults.max_sequences)
            ),
            "max_tokens": spec.context_length,
        }
        return cls(**(usual | given))


@dataclass(frozen=True, slots=True)
class KvMemory:
    """KV as it will lie in memory; with the model it decides whose blocks are interchangeable."""

    blocks: int
    dtype: str
    layout: str


def kv_blocks_for_sequences(settings: Settings) -> int:
    """Every row can grow to the end of the context, up to the default cap."""
    if settings.kv_blocks is not None:
        return settings.kv_blocks
    blocks = settings.max_sequences * -(-settings.max_tokens // settings.block_size)
    return 1 + min(blocks, KV_BLOCKS_DEFAULT_MAX - 1)


def kv_blocks_for_memory(settings: Settings, token_bytes: int, device: Device) -> int:
    """token_bytes: K and V of one token over all layers."""
    if settings.kv_blocks is not None:
        return settings.kv_blocks
    blocks = device.kv_bytes_available() // (token_bytes * settings.block_size)
    return min(blocks, KV_BLOCKS_DEFAULT_MAX)


def decide_config(load: Load, spec: ModelSpec, settings: Settings, kv: KvMemory) -> EngineConfig:
    return EngineConfig(
        block_size=settings.block_size,
        kv_blocks=kv.blocks,
        # A sequence longer than all blocks together could never finish.
        max_tokens=min(settings.max_tokens, max(2, (kv.blocks - 1) * settings.block_size)),
        vocab_size=spec.vocab_size,
        max_sequences=settings.max_sequences,
        max_step_tokens=settings.max_step_tokens,
        max_waiting=settings.max_waiting,
        eos_token_ids=spec.eos_token_ids,
        model_revision=load.model_revision or model_revision(load.source),
        kv_dtype=kv.dtype,
        kv_layout=kv.layout,
    )
