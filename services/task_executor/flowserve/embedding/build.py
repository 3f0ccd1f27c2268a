"""Builds the master of an encoder folder, reporting each start-up step."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from deepflow.core.encoder_spec import EncoderSpec
from deepflow.core.sizes import format_bytes
from services.task_executor.devices.base import Device
from services.task_executor.devices.emulated.profiles import AcceleratorProfile
from services.task_executor.devices.registry import DEVICES
from services.task_executor.devices.torch_import import import_torch
from services.task_executor.flowserve.embedding.config import EmbeddingConfig, read_config
from services.task_executor.flowserve.embedding.master import EmbeddingMaster
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.step_clock import StepClock

Report = Callable[[str], AbstractContextManager[None]]
WARM_UP_TOKENS_MAX = 16
DTYPE = "float32"


def build_embedding_master(
    load: Load, report: Report, step_clock: StepClock | None = None
) -> EmbeddingMaster:
    """Raises ValueError (ModelFolderError included) where the Load cannot be served as asked."""
    entry = DEVICES.get(load.device)
    if isinstance(entry, AcceleratorProfile):
        raise ValueError(
            f"the device {load.device} emulates models that generate text; "
            "an embedding model needs a real device, such as cpu"
        )
    if load.dtype not in ("", DTYPE):
        raise ValueError(
            f"dtype {load.dtype!r} is not supported for embeddings; supported: {DTYPE}"
        )
    with report("import_torch"):
        import_torch()
    from services.task_executor.flowserve.embedding.executor import EncoderExecutor
    from services.task_executor.flowserve.models.bert import load_bert
    from services.task_executor.weights.safetensors_folder import SafetensorsFolder

    with report("read_config"):
        spec = EncoderSpec.from_folder(load.source)
        device = entry.open(load.settings.get("cpu_threads"), DTYPE)
        config = read_config(load.settings, spec, dtype=DTYPE)
        _require_room(config, device)
    with report("read_weights"):
        weights = SafetensorsFolder(load.source, device.torch_device, device.dtype)
        executor = EncoderExecutor(load_bert(spec, weights, device), spec.pooling)
    with report("warm_up"):
        executor.execute([[0] * min(WARM_UP_TOKENS_MAX, config.max_tokens)])
    return EmbeddingMaster(config, executor, step_clock=step_clock)


def _require_room(config: EmbeddingConfig, device: Device) -> None:
    """Before a weight is read: a machine that runs out of memory kills more than this model."""
    available = device.memory_available()
    if config.weight_bytes > available:
        raise ValueError(
            f"the weights take {format_bytes(config.weight_bytes)} as {DTYPE}, "
            f"but only {format_bytes(available)} of memory are free"
        )
