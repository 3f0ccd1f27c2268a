"""Models by the architecture name in config.json; importing this package imports torch."""

from typing import Protocol

from deepflow.core.families import FAMILIES
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import Device
from services.task_executor.devices.registry import Registry
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.dense import load_dense
from services.task_executor.flowserve.models.split import Split
from services.task_executor.weights.safetensors_folder import SafetensorsFolder


class LoadModel(Protocol):
    def __call__(
        self,
        spec: ModelSpec,
        weights: SafetensorsFolder,
        device: Device,
        split: Split | None = None,
    ) -> Model:
        """Where it is split over ranks, `spec` and `weights` are those of this one's share."""


MODELS: Registry[LoadModel] = Registry("architecture", dict.fromkeys(FAMILIES, load_dense))
