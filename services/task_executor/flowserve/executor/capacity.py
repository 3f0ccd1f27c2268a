"""How many sequences, tokens and blocks an engine takes: settings first, then what fits."""

from dataclasses import dataclass, replace

from deepflow.core.devices import INT8
from deepflow.core.engine_policies import POLICIES
from deepflow.core.model_spec import DTYPE_BYTES, ModelSpec, model_revision
from deepflow.core.sizes import MIB, format_bytes
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.memory import (
    KV_BLOCKS_DEFAULT_MAX,
    Demand,
    Footprint,
    MemoryPlan,
    blocks_for,
)
from services.task_executor.flowserve.executor.weight_size import weight_bytes
from services.task_executor.flowserve.load_settings import check_settings
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.tiers.build import count_blocks, disk_block_bytes

MAX_WAITING_DEFAULT = 4096
KV_LAYOUT = "blocks-tokens-heads-dim"
EMULATED_LAYOUT = "fingerprints"
# Emulated blocks take real memory too, though little: eight bytes a token.
NOMINAL_BLOCKS_MAX = 1 << 22
# Tensors of fp32 over the vocabulary that drawing the tokens of one step holds at once.
LOGITS_COPIES = 6
# Positions of prompts whose logits exist at a time where they are scored; `prompt_scores`.
SCORED_POSITIONS = 32
# Scratch memory of the libraries, and what their allocators keep; measured 60 to 90 MiB.
LIBRARY_BYTES = 96 * MIB
# What the libraries keep for the two streams that graphs are made on, and a captured step with all
# its kernels. Set generously: no card was at hand to measure them.
GRAPH_LIBRARY_BYTES = 128 * MIB
GRAPH_BYTES = 16 * MIB
# A weight as stored, as converted and as packed, for a moment.
LOAD_COPIES = 2


@dataclass(frozen=True, slots=True)
class Defaults:
    max_sequences: int
    max_step_tokens: int
    steps_in_flight: int


TORCH_DEFAULTS = Defaults(max_sequences=64, max_step_tokens=512, steps_in_flight=1)
EMULATED_DEFAULTS = Defaults(max_sequences=256, max_step_tokens=8192, steps_in_flight=2)
# There is no step to plan beside.
INSTANT_DEFAULTS = replace(EMULATED_DEFAULTS, steps_in_flight=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a Load may set; cpu_threads is read by whoever opens the device."""

    block_size: int
    max_sequences: int
    max_step_tokens: int
    max_tokens: int | None = None  # None = as many as the model and the memory allow
    max_waiting: int = MAX_WAITING_DEFAULT
    kv_blocks: int | None = None
    kv_bytes: int | None = None
    kv_dram_bytes: int = 0
    kv_disk_bytes: int = 0
    cpu_threads: int | None = None
    steps_in_flight: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    tpot_ms: int = 0
    ttft_ms: int = 0

    @classmethod
    def read(
        cls, given: dict[str, int], spec: ModelSpec, defaults: Defaults, block_size: int
    ) -> "Settings":
        check_settings(given, tuple(cls.__dataclass_fields__), spec.context_length)
        if given.get("max_tokens") == 1:
            raise ValueError("setting max_tokens is 1, but must be 2 or more: a prompt, an answer")
        usual = {
            "block_size": block_size,
            "max_sequences": defaults.max_sequences,
            # Every stage has a step of its own.
            "steps_in_flight": max(defaults.steps_in_flight, given.get("pipeline_parallel", 1)),
            # Every row runs one token a step, so that none stands still.
            "max_step_tokens": max(
                defaults.max_step_tokens, given.get("max_sequences", defaults.max_sequences)
            ),
        }
        return cls(**(usual | given))


def kv_dtype_of(dtype: str, float_dtype: str) -> str:
    """int8 is for weights: KV stays what activations are."""
    return float_dtype if dtype == INT8 else dtype


def footprint(
    spec: ModelSpec,
    dtype: str,
    settings: Settings,
    float_dtype: str = "float32",
    graph_rows_max: int = 0,
) -> Footprint:
    """What the model takes on a device that packs its linears and gathers KV to attend.

    `float_dtype`: of activations and KV where the weights are int8. `graph_rows_max`: of the
    device; what it captures later is kept free from the start.
    """
    computed = kv_dtype_of(dtype, float_dtype)
    size = DTYPE_BYTES[computed]
    token = spec.kv_bytes_per_token(computed)
    return Footprint(
        dtype=dtype,
        weight_bytes=weight_bytes(spec, dtype, float_dtype),
        working_bytes=LIBRARY_BYTES
        + max(_step_bytes(spec, size, settings), _load_bytes(spec, size))
        + _graph_bytes(spec, size, settings, min(graph_rows_max, settings.max_sequences)),
        block_bytes=token * settings.block_size,
        gather_bytes=token * settings.block_size // spec.num_layers,
    )


def _step_bytes(spec: ModelSpec, size: int, settings: Settings) -> int:
    """Activations of the largest step, and the logits of a full batch or of a scored slice."""
    rows = max(settings.max_sequences, SCORED_POSITIONS)
    logits = rows * spec.vocab_size * 4 * LOGITS_COPIES
    return settings.max_step_tokens * _token_bytes(spec, size) + logits


def _token_bytes(spec: ModelSpec, size: int) -> int:
    """Activations of one token. One copy of the widest more than fp32 needs: what int8 linears
    quantise from."""
    width = 6 * spec.hidden_size + 4 * spec.intermediate_size + 2 * (spec.q_size + spec.kv_size)
    return width * size


def _graph_bytes(spec: ModelSpec, size: int, settings: Settings, rows: int) -> int:
    """Of all graphs together, which share the memory of their activations."""
    if not rows:
        return 0
    sizes = rows.bit_length() + 1  # 1, 2, 4 ... and the largest batch
    tables = rows * blocks_for(spec.context_length, settings.block_size) * 4
    graph = GRAPH_BYTES + tables + rows * spec.hidden_size * size
    return GRAPH_LIBRARY_BYTES + sizes * graph + rows * _token_bytes(spec, size)


def _load_bytes(spec: ModelSpec, size: int) -> int:
    largest = max(spec.embedding_parameters, 2 * spec.hidden_size * spec.intermediate_size)
    return LOAD_COPIES * largest * size


def memory_demand(
    spec: ModelSpec,
    dtypes: tuple[str, ...],
    settings: Settings,
    float_dtype: str = "float32",
    graph_rows_max: int = 0,
) -> Demand:
    """`dtypes`: the one asked for, then what else the device computes in."""
    asked, *others = (
        footprint(spec, dtype, settings, float_dtype, graph_rows_max) for dtype in dtypes
    )
    return Demand(
        footprint=asked,
        context_length=spec.context_length,
        block_size=settings.block_size,
        max_tokens=settings.max_tokens,
        kv_bytes=settings.kv_bytes,
        kv_blocks=settings.kv_blocks,
        alternatives=tuple(others),
    )


def plan_nominal(spec: ModelSpec, dtype: str, settings: Settings) -> MemoryPlan:
    """For a device that holds nothing real: every row can grow to the end of the context."""
    block_bytes = spec.kv_bytes_per_token(dtype) * settings.block_size
    asked = settings.max_tokens or spec.context_length
    per_row = blocks_for(asked, settings.block_size) - 1
    blocks = 1 + min(settings.max_sequences * per_row, KV_BLOCKS_DEFAULT_MAX - 1)
    if settings.kv_blocks is not None:
        blocks = settings.kv_blocks
    elif settings.kv_bytes is not None:
        blocks = settings.kv_bytes // block_bytes
    if blocks > NOMINAL_BLOCKS_MAX:
        raise ValueError(
            f"{blocks} KV blocks are asked for, but an emulated device has at most"
            f" {NOMINAL_BLOCKS_MAX} ({format_bytes(NOMINAL_BLOCKS_MAX * block_bytes)} here)"
        )
    room = max(2, (blocks - 1) * settings.block_size)
    return MemoryPlan(
        kv_blocks=blocks,
        max_tokens=settings.max_tokens or min(spec.context_length, room),
        weight_bytes=spec.weight_bytes(dtype),
        kv_bytes=blocks * block_bytes,
        working_bytes=0,
    )


def choose_dtype(asked: str, best: str, known: tuple[str, ...], device: str) -> str:
    """Raises ValueError with the choices."""
    if asked and asked not in known:
        raise ValueError(
            f"dtype {asked!r} cannot be computed on {device}; choices: {', '.join(known)}"
        )
    return asked or best


def decide_config(
    load: Load,
    spec: ModelSpec,
    settings: Settings,
    plan: MemoryPlan,
    *,
    dtype: str,
    layout: str,
    float_dtype: str = "float32",
) -> EngineConfig:
    """`float_dtype`: of activations and KV where the weights are int8."""
    block_bytes = plan.kv_bytes // plan.kv_blocks  # on all ranks together
    ranks = settings.tensor_parallel * settings.pipeline_parallel
    return EngineConfig(
        block_size=settings.block_size,
        kv_blocks=plan.kv_blocks,
        max_tokens=plan.max_tokens,
        vocab_size=spec.vocab_size,
        max_sequences=settings.max_sequences,
        max_step_tokens=settings.max_step_tokens,
        max_waiting=settings.max_waiting,
        steps_in_flight=settings.steps_in_flight,
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        policy=load.policy or POLICIES[0],
        kv_dram_blocks=count_blocks("kv_dram_bytes", settings.kv_dram_bytes, block_bytes),
        kv_disk_blocks=count_blocks(
            "kv_disk_bytes", settings.kv_disk_bytes, disk_block_bytes(block_bytes, ranks)
        ),
        tpot_seconds=settings.tpot_ms / 1000,
        ttft_seconds=settings.ttft_ms / 1000,
        eos_token_ids=spec.eos_token_ids,
        model_revision=load.model_revision or model_revision(load.source),
        dtype=dtype,
        kv_dtype=kv_dtype_of(dtype, float_dtype),
        kv_layout=layout,
        weight_bytes=plan.weight_bytes,
        kv_bytes=plan.kv_bytes,
    )
