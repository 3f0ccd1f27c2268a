"""Builds the executor that a Load asks for, reporting each start-up step.

torch is imported only on the way to a device that it drives.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from deepflow.core.devices import EMULATED_DTYPES
from deepflow.core.model_spec import ModelSpec
from deepflow.core.sizes import format_bytes
from services.task_executor.devices.base import Device, KvShape
from services.task_executor.devices.emulated.profiles import AcceleratorProfile
from services.task_executor.devices.registry import DEVICES, TorchDevice
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.executor.capacity import (
    EMULATED_DEFAULTS,
    EMULATED_LAYOUT,
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
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.grammar.vocabulary import VocabularyFacts
from services.task_executor.flowserve.messages import Load

if TYPE_CHECKING:
    from services.task_executor.flowserve.models.base import Model

log = logging.getLogger(__name__)

Report = Callable[[str], AbstractContextManager[None]]


class Built(NamedTuple):
    config: EngineConfig
    executor: Executor
    grammars: Grammars


def build_executor(load: Load, report: Report) -> Built:
    """Raises ValueError (ModelFolderError included) where the Load cannot be served as asked."""
    device = DEVICES.get(load.device)
    if isinstance(device, AcceleratorProfile):
        return _build_emulated(load, device, report)
    return _build_torch(load, device, report)


def _build_emulated(load: Load, profile: AcceleratorProfile, report: Report) -> Built:
    with report("read_config"):
        stored = ModelSpec.from_folder(load.source)
        dtype = choose_dtype(load.dtype, stored.dtype, EMULATED_DTYPES, load.device)
        spec = replace(stored, dtype=dtype)
        settings = Settings.read(load.settings, spec, EMULATED_DEFAULTS, profile.block_size)
        plan = plan_nominal(spec, dtype, settings)
    grammars, reading = _begin_grammars(load, spec)
    with report("allocate_kv"):
        config = decide_config(load, spec, settings, plan, dtype=dtype, layout=EMULATED_LAYOUT)
        config = msgspec.structs.replace(config, has_logits=False)
        executor = EmulatedExecutor(spec, profile, config, RowMatchers(grammars, spec.vocab_size))
    with report("warm_up"):
        warm_up(executor, config)
        reading.join()
    return Built(config, executor, grammars)


def _build_torch(load: Load, entry: TorchDevice, report: Report) -> Built:
    dtype = choose_dtype(load.dtype, entry.dtypes[0], entry.dtypes, load.device)
    with report("import_torch"):
        import_torch()
    with report("read_config"):
        spec = ModelSpec.from_folder(load.source)
        device = entry.open(load.settings.get("cpu_threads"), dtype)
        settings = Settings.read(load.settings, spec, TORCH_DEFAULTS, device.block_size)
        others = tuple(name for name in entry.dtypes if name != dtype)
        demand = memory_demand(spec, (dtype, *others), settings)
        plan = plan_memory(demand, device.memory_available())
        _log_plan(load, spec, plan)
    grammars, reading = _begin_grammars(load, spec)
    with report("read_weights"):
        model = _load_model(load.source, spec, device)
    with report("allocate_kv"):
        config = decide_config(load, spec, settings, plan, dtype=dtype, layout=KV_LAYOUT)
        matchers = RowMatchers(grammars, spec.vocab_size)
        executor = _torch_executor(spec, model, device, config, matchers)
    with report("warm_up"):
        warm_up(executor, config)
        reading.join()
    return Built(config, executor, grammars)


def _begin_grammars(load: Load, spec: ModelSpec) -> tuple[Grammars, threading.Thread]:
    """Read the vocabulary beside the weights: later it would stand in the way of the steps."""
    grammars = Grammars(VocabularyFacts(load.source, spec.vocab_size, spec.eos_token_ids))
    reading = threading.Thread(target=grammars.read_vocabulary, name="read-vocabulary")
    reading.start()
    return grammars, reading


def _load_model(source: str, spec: ModelSpec, device: Device) -> "Model":
    from services.task_executor.flowserve.models import MODELS
    from services.task_executor.weights.safetensors_folder import SafetensorsFolder

    weights = SafetensorsFolder(source, device.torch_device, device.dtype)
    return MODELS.get(spec.architecture)(spec, weights, device)


def _torch_executor(
    spec: ModelSpec,
    model: "Model",
    device: Device,
    config: EngineConfig,
    matchers: RowMatchers,
) -> Executor:
    from services.task_executor.flowserve.executor.torch_executor import TorchExecutor

    shape = KvShape(
        spec.num_layers, config.kv_blocks, config.block_size, spec.num_kv_heads, spec.head_dim
    )
    return TorchExecutor(model, device, device.build_kv(shape), config, matchers)


def _log_plan(load: Load, spec: ModelSpec, plan: MemoryPlan) -> None:
    log.info(
        "%s: %s weights, %s KV cache",
        load.deployment,
        format_bytes(plan.weight_bytes),
        format_bytes(plan.kv_bytes),
    )
    if plan.max_tokens < spec.context_length:
        log.info("its context is %d of %d tokens", plan.max_tokens, spec.context_length)
