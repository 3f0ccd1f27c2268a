"""Builds the executor that a Load asks for, reporting each start-up step.

torch is imported only on the way to a device that it drives.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from deepflow.core.model_spec import ModelSpec
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
    KvMemory,
    Settings,
    decide_config,
    kv_blocks_for_memory,
    kv_blocks_for_sequences,
)
from services.task_executor.flowserve.executor.emulated_executor import EmulatedExecutor
from services.task_executor.flowserve.executor.warm_up import warm_up
from services.task_executor.flowserve.messages import Load

if TYPE_CHECKING:
    from services.task_executor.flowserve.models.base import Model

Report = Callable[[str], AbstractContextManager[None]]


def build_executor(load: Load, report: Report) -> tuple[EngineConfig, Executor]:
    """Raises ValueError (ModelFolderError included) where the Load cannot be served as asked."""
    device = DEVICES.get(load.device)
    if isinstance(device, AcceleratorProfile):
        return _build_emulated(load, device, report)
    return _build_torch(load, device, report)


def _build_emulated(
    load: Load, profile: AcceleratorProfile, report: Report
) -> tuple[EngineConfig, Executor]:
    with report("read_config"):
        spec = ModelSpec.from_folder(load.source)
        settings = Settings.read(load.settings, spec, EMULATED_DEFAULTS, profile.block_size)
    with report("allocate_kv"):
        kv = KvMemory(kv_blocks_for_sequences(settings), spec.dtype, EMULATED_LAYOUT)
        config = decide_config(load, spec, settings, kv)
        executor = EmulatedExecutor(spec, profile, config)
    with report("warm_up"):
        warm_up(executor, config)
    return config, executor


def _build_torch(load: Load, entry: TorchDevice, report: Report) -> tuple[EngineConfig, Executor]:
    with report("import_torch"):
        import_torch()
    with report("read_config"):
        spec = ModelSpec.from_folder(load.source)
        device = entry.open(load.settings.get("cpu_threads"))
        settings = Settings.read(load.settings, spec, TORCH_DEFAULTS, device.block_size)
    with report("read_weights"):
        model = _load_model(load.source, spec, device)
    with report("allocate_kv"):
        config = decide_config(load, spec, settings, _kv_memory(spec, device, settings))
        executor = _torch_executor(spec, model, device, config)
    with report("warm_up"):
        warm_up(executor, config)
    return config, executor


def _load_model(source: str, spec: ModelSpec, device: Device) -> "Model":
    from services.task_executor.flowserve.models import MODELS
    from services.task_executor.weights.safetensors_folder import SafetensorsFolder

    weights = SafetensorsFolder(source, device.torch_device, device.dtype)
    return MODELS.get(spec.architecture)(spec, weights, device)


def _torch_executor(
    spec: ModelSpec, model: "Model", device: Device, config: EngineConfig
) -> Executor:
    from services.task_executor.flowserve.executor.torch_executor import TorchExecutor

    shape = KvShape(
        spec.num_layers, config.kv_blocks, config.block_size, spec.num_kv_heads, spec.head_dim
    )
    return TorchExecutor(model, device, device.build_kv(shape), config)


def _kv_memory(spec: ModelSpec, device: Device, settings: Settings) -> KvMemory:
    dtype = str(device.dtype).removeprefix("torch.")
    blocks = kv_blocks_for_memory(settings, spec.kv_bytes_per_token(dtype), device)
    return KvMemory(blocks, dtype, KV_LAYOUT)
