"""Models by the architecture name in config.json; importing this package imports torch."""

from collections.abc import Callable

from deepflow.core.families import FAMILIES
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import Device
from services.task_executor.devices.registry import Registry
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.weights.safetensors_folder import SafetensorsFolder

MODELS: Registry[Callable[[ModelSpec, SafetensorsFolder, Device], Model]] = Registry(
    "architecture", dict.fromkeys(FAMILIES, load_dense)
)
