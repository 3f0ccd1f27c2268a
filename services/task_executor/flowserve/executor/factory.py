"""Builds the executor that a Load asks for, reporting each start-up step.

torch is imported only on the way to a device that it drives.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from deepflow.core.devices import EMULATED_DTYPES
from deepflow.core.model_spec import ModelSpec
from deepflow.core.parallel import Layout
from deepflow.core.sizes import format_bytes
from services.task_executor.devices.base import Device, KvShape, LayerKv
from services.task_executor.devices.emulated.profiles import AcceleratorProfile
from services.task_executor.devices.registry import DEVICES, TorchDevice
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.executor.built import Built, Report, grammars_beside
from services.task_executor.flowserve.executor.capacity import (
    EMULATED_DEFAULTS,
    EMULATED_LAYOUT,
    INSTANT_DEFAULTS,
    KV_LAYOUT,
    TORCH_DEFAULTS,
    Settings,
    choose_dtype,
    decide_config,
    memory_demand,
    plan_nominal,
)
from services.task_executor.flowserve.executor.emulated_executor import EmulatedExecutor
from services.task_executor.flowserve.executor.memory import MemoryPlan, plan_memory
from services.task_executor.flowserve.executor.warm_up import warm_up
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.ranks.build import build_on_ranks
from services.task_executor.flowserve.tiers.build import Tiers, build_tiers, require_memory
from services.task_executor.flowserve.tiers.emulated_blocks import EmulatedBlocks

if TYPE_CHECKING:
    from services.task_executor.flowserve.models.base import Model
    from services.task_executor.flowserve.models.graphed import GraphedModel

log = logging.getLogger(__name__)


def build_executor(load: Load, report: Report) -> Built:
    """Raises ValueError (ModelFolderError included) where the Load cannot be served as asked."""
    device = DEVICES.get(load.device)
    layout = Layout.of_settings(load.settings)
    if isinstance(device, AcceleratorProfile):
        if layout.size > 1:
            raise ValueError(
                f"the device {load.device} emulates one accelerator and no links between several:"
                " tensor_parallel and pipeline_parallel must be 1 there"
            )
        return _build_emulated(load, device, report)
    if layout.size > 1:
        return build_on_ranks(load, device, layout, report)
    return _build_torch(load, device, report)


def _build_emulated(load: Load, profile: AcceleratorProfile, report: Report) -> Built:
    with report("read_config"):
        stored = ModelSpec.from_folder(load.source)
        dtype = choose_dtype(load.dtype, stored.dtype, EMULATED_DTYPES, load.device)
        spec = replace(stored, dtype=dtype)
        usual = INSTANT_DEFAULTS if profile.is_instant else EMULATED_DEFAULTS
        settings = Settings.read(load.settings, spec, usual, profile.block_size)
        plan = plan_nominal(spec, dtype, settings)
    with grammars_beside(load, spec) as (grammars, reading):
        with report("allocate_kv"):
            config = decide_config(load, spec, settings, plan, dtype=dtype, layout=EMULATED_LAYOUT)
            config = msgspec.structs.replace(config, has_logits=False)
            matchers = RowMatchers(grammars, spec.vocab_size)
            executor = EmulatedExecutor(spec, profile, config, matchers)
        with report("warm_up"):
            warm_up(executor, config)
            reading.join()
            link_seconds = spec.kv_bytes_per_token(dtype) * config.block_size / profile.link_rate
            blocks = EmulatedBlocks(executor.cache, link_seconds)
            tiers = build_tiers(config, blocks, load)
    return Built(config, executor, grammars, tiers)


def _build_torch(load: Load, entry: TorchDevice, report: Report) -> Built:
    dtype = choose_dtype(load.dtype, entry.dtypes[0], entry.dtypes, load.device)
    with report("import_torch"):
        import_torch()
    with report("read_config"):
        spec = ModelSpec.from_folder(load.source)
        device = entry.open(load.settings.get("cpu_threads"), dtype)
        device.check_model(spec)
        settings = Settings.read(load.settings, spec, TORCH_DEFAULTS, device.block_size)
        others = tuple(name for name in entry.dtypes if name != dtype)
        demand = memory_demand(
            spec, (dtype, *others), settings, entry.dtypes[0], device.graph_rows_max
        )
        plan = plan_memory(demand, _memory_available(device, settings))
        _log_plan(load, spec, plan)
    with grammars_beside(load, spec) as (grammars, reading):
        with report("read_weights"):
            model = _load_model(load.source, spec, device)
        with report("allocate_kv"):
            config = decide_config(
                load,
                spec,
                settings,
                plan,
                dtype=dtype,
                layout=KV_LAYOUT,
                float_dtype=entry.dtypes[0],
            )
            matchers = RowMatchers(grammars, spec.vocab_size)
            kv = _build_kv(spec, device, config)
            executor = _torch_executor(model, device, kv, config, matchers)
        with report("warm_up"):
            warm_up(executor, config)
            reading.join()
            tiers = _torch_tiers(device, kv, config, load)
    return Built(config, executor, grammars, tiers)


def _memory_available(device: Device, settings: Settings) -> int:
    """What is left for the model beside the KV that is kept in the host's memory."""
    if not settings.kv_dram_bytes:
        return device.memory_available()
    require_memory(settings.kv_dram_bytes)
    is_shared = device.torch_device.type == "cpu"
    return device.memory_available() - (settings.kv_dram_bytes if is_shared else 0)


def _load_model(source: str, spec: ModelSpec, device: Device) -> "Model":
    from services.task_executor.flowserve.models import MODELS
    from services.task_executor.weights.safetensors_folder import SafetensorsFolder

    weights = SafetensorsFolder(source, device.torch_device, device.dtype)
    return MODELS.get(spec.architecture)(spec, weights, device)


def _build_kv(spec: ModelSpec, device: Device, config: EngineConfig) -> list[LayerKv]:
    shape = KvShape(
        spec.num_layers, config.kv_blocks, config.block_size, spec.num_kv_heads, spec.head_dim
    )
    return device.build_kv(shape)


def _torch_tiers(
    device: Device, kv: list[LayerKv], config: EngineConfig, load: Load
) -> Tiers | None:
    from services.task_executor.flowserve.tiers.pinned_blocks import blocks_of

    return build_tiers(config, blocks_of(device, kv), load)


def _torch_executor(
    model: "Model",
    device: Device,
    kv: list[LayerKv],
    config: EngineConfig,
    matchers: RowMatchers,
) -> Executor:
    from services.task_executor.flowserve.executor.torch_executor import TorchExecutor

    if device.graph_rows_max:
        model = _with_graphs(model, device, kv, config)
    return TorchExecutor(model, device, kv, config, matchers)


def _with_graphs(
    model: "Model", device: Device, kv: list[LayerKv], config: EngineConfig
) -> "GraphedModel":
    from services.task_executor.flowserve.models.graphed import GraphedModel

    blocks_per_row = -(-config.max_tokens // config.block_size)
    return GraphedModel(
        model, device, kv, max_sequences=config.max_sequences, blocks_per_row=blocks_per_row
    )


def _log_plan(load: Load, spec: ModelSpec, plan: MemoryPlan) -> None:
    log.info(
        "%s: %s weights, %s KV cache",
        load.deployment,
        format_bytes(plan.weight_bytes),
        format_bytes(plan.kv_bytes),
    )
    if plan.max_tokens < spec.context_length:
        log.info("its context is %d of %d tokens", plan.max_tokens, spec.context_length)
