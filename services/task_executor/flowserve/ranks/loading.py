"""One rank's share of a model on its device; the same steps on every rank."""

from deepflow.core.model_spec import ModelSpec
from deepflow.core.parallel import Place, Share
from services.task_executor.devices.base import Device, KvShape, LayerKv
from services.task_executor.devices.registry import DEVICES, TorchDevice
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.models import MODELS
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.ranks.collectives import Collectives
from services.task_executor.flowserve.ranks.share_split import ShareSplit
from services.task_executor.weights.share_folder import ShareFolder


def open_device(name: str, dtype: str, threads: int, place: Place) -> Device:
    """All ranks of an engine are on one machine: each has the device of its own number."""
    entry = DEVICES.get(name)
    assert isinstance(entry, TorchDevice), f"{name} has no ranks"
    return entry.open(threads, dtype, index=place.rank)


def load_share(
    source: str, spec: ModelSpec, place: Place, device: Device, collectives: Collectives
) -> Model:
    share = Share(spec, place)
    weights = ShareFolder(source, device.torch_device, device.dtype, share)
    split = ShareSplit(share, collectives)
    return MODELS.get(spec.architecture)(share.spec, weights, device, split)


def build_share_kv(
    spec: ModelSpec, place: Place, device: Device, config: EngineConfig
) -> list[LayerKv]:
    own = Share(spec, place).spec
    shape = KvShape(
        own.num_layers, config.kv_blocks, config.block_size, own.num_kv_heads, own.head_dim
    )
    return device.build_kv(shape)
