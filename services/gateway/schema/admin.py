"""The fields of what admins change: deployments, and how many there are of something."""

from typing import Any

from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.engine_policies import POLICIES, TARGET_MS_MAX
from deepflow.core.parallel import RANKS_MAX
from deepflow.core.sizes import parse_bytes
from deepflow.core.tool_formats import TOOL_FORMATS
from deepflow.errors import InvalidRequest
from deepflow.members import COUNT_MAX
from deepflow.v1 import cluster_pb2
from services.gateway.schema import fields, values
from services.gateway.schema.fields import Fields, Honoured
from services.gateway.schema.limits import Limits

SOURCE_CHARACTERS_MAX = 4096
DTYPE_CHARACTERS_MAX = 32
TOKENS_MAX = 2**31 - 1
KV_BYTES_MAX = 1 << 50

_MILLISECONDS_SHAPE = {"type": "integer", "minimum": 0, "maximum": TARGET_MS_MAX}
_RANKS_SHAPE = {"type": "integer", "minimum": 0, "maximum": RANKS_MAX}
_COUNT_SHAPE = {"type": "integer", "minimum": 1, "maximum": COUNT_MAX}
# What the cluster manager calls a field, where it is not what we call it.
_WIRE_NAMES = {
    "kv_memory": "kv_bytes",
    "kv_dram": "kv_dram_bytes",
    "kv_disk": "kv_disk_bytes",
}
_OWN_NAMES = {"target": "kind", **{theirs: ours for ours, theirs in _WIRE_NAMES.items()}}
_ENGINE_FIELDS = {field.name for field in cluster_pb2.EngineOptions.DESCRIPTOR.fields}


def read_deployment(
    document: dict[str, Any], limits: Limits, name: str, former: cluster_pb2.Deployment | None
) -> cluster_pb2.Deployment:
    """What was there with the changes that are named; a new one needs at least its source."""
    changes = DEPLOYMENT.read(document, limits)
    asked = cluster_pb2.Deployment(name=name, replicas=1, device="cpu")
    if former is None:
        fields.require(changes, "", source="the path of a model folder, or ORG/NAME")
    else:
        asked.CopyFrom(former)
    for field, value in changes.items():
        wire_name = _WIRE_NAMES.get(field, field)
        setattr(asked.engine if wire_name in _ENGINE_FIELDS else asked, wire_name, value)
    return asked


def read_replicas(document: dict[str, Any], limits: Limits) -> int:
    read = REPLICAS.read(document, limits)
    fields.require(read, "", replicas=f"how many there be, from 1 to {COUNT_MAX}")
    return int(read["replicas"])


def read_count(document: dict[str, Any], limits: Limits) -> int:
    read = COUNT.read(document, limits)
    fields.require(read, "", count=f"how many there be, from 1 to {COUNT_MAX}")
    return int(read["count"])


def own_name(param: str) -> str:
    return _OWN_NAMES.get(param, param)


def _source(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, SOURCE_CHARACTERS_MAX)


def _count(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 1, COUNT_MAX)


def _tokens(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 0, TOKENS_MAX)


def _device(value: Any, param: str, _limits: Limits) -> str:
    return values.word_of(value, param, tuple(DEVICE_DTYPES))


def _dtype(value: Any, param: str, _limits: Limits) -> str:
    text = values.string(value, param)
    return values.name(text, param, DTYPE_CHARACTERS_MAX) if text else ""


def _tool_format(value: Any, param: str, _limits: Limits) -> str:
    text = values.string(value, param)
    return values.word_of(text, param, TOOL_FORMATS) if text else ""


def _policy(value: Any, param: str, _limits: Limits) -> str:
    text = values.string(value, param)
    return values.word_of(text, param, POLICIES) if text else ""


def _ranks(value: Any, param: str, _limits: Limits) -> int:
    count = values.integer(value, param, 0, RANKS_MAX)
    return count if count > 1 else 0  # one is what nothing means, so that it is no other load


def _milliseconds(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 0, TARGET_MS_MAX)


def _kv_memory(value: Any, param: str, _limits: Limits) -> int:
    text = values.string(value, param)
    if not text:
        return 0
    try:
        count = parse_bytes(text)
    except ValueError as error:
        raise InvalidRequest(f"'{param}' {error}", param=param) from error
    if not 1 <= count <= KV_BYTES_MAX:
        raise values.out_of_range(param, "from 1 byte to 1 PiB", text)
    return count


_REPLICAS = Honoured("replicas", _count, _COUNT_SHAPE, "Task executors that hold it.")

DEPLOYMENT = Fields(
    honoured=(
        Honoured(
            "source",
            _source,
            {"type": "string"},
            "Absolute path of the model folder, as the cluster manager and the task executors see"
            " it; or the id of a hub's model that was fetched there, ORG/NAME or"
            " ORG/NAME@REVISION. Needed for a new one.",
        ),
        _REPLICAS,
        Honoured(
            "device",
            _device,
            {"enum": list(DEVICE_DTYPES)},
            "What computes it, `cpu` for a new one; `emulated:…` computes nothing and takes the"
            " time that the accelerator would.",
        ),
        Honoured(
            "dtype",
            _dtype,
            {"type": "string"},
            'What to compute in, such as bfloat16; "" is what is best on the device.',
        ),
        Honoured(
            "max_tokens",
            _tokens,
            {"type": "integer", "minimum": 0},
            "Prompt and answer of one request together; 0 is as many as fit.",
        ),
        Honoured(
            "kv_memory",
            _kv_memory,
            {"type": "string"},
            'Memory of the KV cache, as 2GiB or 512MiB; "" is derived from what is free.',
        ),
        Honoured(
            "kv_dram",
            _kv_memory,
            {"type": "string"},
            'Host memory for KV that has left the device, as 8GiB; "" is none.',
        ),
        Honoured(
            "kv_disk",
            _kv_memory,
            {"type": "string"},
            'Disk for KV that has left the device and that memory, as 50GiB; "" is none.',
        ),
        Honoured(
            "tool_format",
            _tool_format,
            {"enum": ["", *TOOL_FORMATS]},
            'How the model writes tool calls; "" is told from its chat template.',
        ),
        Honoured(
            "policy",
            _policy,
            {"enum": ["", *POLICIES]},
            'Who runs first, and how much of a step prompts take; "" is `priority`.',
        ),
        Honoured(
            "tpot_ms",
            _milliseconds,
            _MILLISECONDS_SHAPE,
            "Target of `slo`: milliseconds between two tokens; 0 is none.",
        ),
        Honoured(
            "tensor_parallel",
            _ranks,
            _RANKS_SHAPE,
            "Ranks that share every layer of the model; 0 is 1.",
        ),
        Honoured(
            "pipeline_parallel",
            _ranks,
            _RANKS_SHAPE,
            "Stages that the layers are divided into; 0 is 1.",
        ),
        Honoured(
            "ttft_ms",
            _milliseconds,
            _MILLISECONDS_SHAPE,
            "Target of `slo`: milliseconds until the first token; 0 is the usual.",
        ),
    )
)
REPLICAS = Fields(honoured=(_REPLICAS,))
COUNT = Fields(honoured=(Honoured("count", _count, _COUNT_SHAPE, "How many there be."),))
