"""Reads a request for a deployment; every refusal names the field."""

import re
from dataclasses import fields
from pathlib import Path

from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.encoder_spec import EncoderSpec, is_encoder_folder
from deepflow.core.engine_policies import POLICIES, SLO
from deepflow.core.generation_defaults import read_generation_defaults
from deepflow.core.model_folder import ModelFolderError, read_json
from deepflow.core.model_spec import ModelSpec, model_revision
from deepflow.core.parallel import RANKS_MAX
from deepflow.core.tool_formats import TOOL_FORMATS
from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2

DEVICES = tuple(DEVICE_DTYPES)
REPLICAS_MAX = 64
RANK_FIELDS = ("tensor_parallel", "pipeline_parallel")
TIER_FIELDS = ("kv_dram_bytes", "kv_disk_bytes")
KV_BYTES_MAX = 1 << 50  # beyond any machine
NAME_LENGTH_MAX = 128
# Names travel in URLs, record keys and logs: "demo", "meta-llama/Llama-3.2-1B".
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def check_deployment(asked: cluster_pb2.Deployment) -> None:
    check_name(asked.name)
    if asked.device not in DEVICES:
        raise InvalidRequest(
            f"device {asked.device!r} is not known; choices: {', '.join(DEVICES)}", param="device"
        )
    check_count(asked.replicas, "replicas")
    _check_dtype(asked)
    if asked.tool_format and asked.tool_format not in TOOL_FORMATS:
        raise InvalidRequest(
            f"tool_format {asked.tool_format!r} is not known; choices: {', '.join(TOOL_FORMATS)}",
            param="tool_format",
        )
    _check_engine(asked.engine)
    _check_ranks(asked)


def _check_engine(engine: cluster_pb2.EngineOptions) -> None:
    if engine.policy and engine.policy not in POLICIES:
        raise InvalidRequest(
            f"policy {engine.policy!r} is not known; choices: {', '.join(POLICIES)}",
            param="policy",
        )
    for field in TIER_FIELDS:
        if getattr(engine, field) > KV_BYTES_MAX:
            raise InvalidRequest(f"{field} is more than 1 PiB", param=field)
    for field in ("tpot_ms", "ttft_ms"):
        if getattr(engine, field) and engine.policy != SLO:
            raise InvalidRequest(f"{field} is a target of the policy {SLO}", param=field)


def check_count(count: int, param: str) -> None:
    if not 1 <= count <= REPLICAS_MAX:
        raise InvalidRequest(
            f"{param} is {count}; it must be from 1 to {REPLICAS_MAX}", param=param
        )


def check_against_facts(asked: cluster_pb2.Deployment) -> None:
    """What only makes sense for some models."""
    facts = asked.facts
    if asked.max_tokens == 1 or asked.max_tokens > facts.context_length:
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}; it must be from 2 to {facts.context_length}, the"
            " context length of the model",
            param="max_tokens",
        )
    if facts.task == cluster_pb2.MODEL_TASK_EMBED:
        _check_encoder(asked)


def _check_ranks(asked: cluster_pb2.Deployment) -> None:
    """Whether the model's heads and layers can be split so is told by who loads it."""
    engine = asked.engine
    for field in RANK_FIELDS:
        count = getattr(engine, field)
        if count > 1 and asked.device.startswith("emulated:"):
            raise InvalidRequest(
                f"{field} is {count}, but the device {asked.device!r} emulates one accelerator"
                " and no links between several; it must be 1",
                param=field,
            )
        if count > RANKS_MAX:
            raise InvalidRequest(
                f"{field} is {count}; it must be from 1 to {RANKS_MAX}", param=field
            )


def _check_encoder(asked: cluster_pb2.Deployment) -> None:
    for field in RANK_FIELDS:
        if getattr(asked.engine, field) > 1:
            raise InvalidRequest(f"{field}: an embedding model runs on one rank", param=field)
    for field in TIER_FIELDS:
        if getattr(asked.engine, field):
            raise InvalidRequest(f"{field}: an embedding model holds no KV cache", param=field)
    others = cluster_pb2.EngineOptions()
    others.CopyFrom(asked.engine)
    others.ClearField("tensor_parallel")
    others.ClearField("pipeline_parallel")
    if others != cluster_pb2.EngineOptions():
        raise InvalidRequest("policy: an embedding model has no steps to share out", param="policy")
    if asked.kv_bytes:
        raise InvalidRequest("kv_bytes: an embedding model holds no KV cache", param="kv_bytes")
    if asked.device.startswith("emulated:"):
        raise InvalidRequest(
            f"device {asked.device!r} emulates models that generate text; an embedding model"
            " needs a real one, such as cpu",
            param="device",
        )
    if asked.dtype not in ("", "float32"):
        raise InvalidRequest(
            f"dtype {asked.dtype!r} is not supported for an embedding model; choices: float32",
            param="dtype",
        )


def _check_dtype(asked: cluster_pb2.Deployment) -> None:
    choices = DEVICE_DTYPES[asked.device]
    if asked.dtype and asked.dtype not in choices:
        raise InvalidRequest(
            f"dtype {asked.dtype!r} cannot be computed on {asked.device}; choices:"
            f" {', '.join(choices)}",
            param="dtype",
        )


def check_name(name: str) -> str:
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name {name[:NAME_LENGTH_MAX]!r} must have 1 to {NAME_LENGTH_MAX} letters, digits and"
            " . _ - (parts may be joined by /), and begin with a letter or digit",
            param="name",
        )
    return name


def read_facts(source: str) -> cluster_pb2.ModelFacts:
    """Reads files: not for the event loop."""
    folder = Path(source)
    try:
        if is_encoder_folder(folder):
            return _encoder_facts(folder)
        spec, revision = ModelSpec.from_folder(folder), model_revision(folder)
        has_chat_template = _has_chat_template(folder)
        defaults = _generation_defaults(folder)
    except ModelFolderError as error:
        raise InvalidRequest(str(error), param="source") from error
    except OSError as error:
        raise InvalidRequest(f"{source}: {error.strerror}", param="source") from error
    return cluster_pb2.ModelFacts(
        architecture=spec.architecture,
        model_revision=revision,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        eos_token_ids=spec.eos_token_ids,
        has_chat_template=has_chat_template,
        parameters=spec.parameters,
        task=cluster_pb2.MODEL_TASK_GENERATE,
        defaults=defaults,
    )


def _encoder_facts(folder: Path) -> cluster_pb2.ModelFacts:
    spec = EncoderSpec.from_folder(folder)
    return cluster_pb2.ModelFacts(
        architecture=spec.architecture,
        model_revision=model_revision(folder),
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        parameters=spec.parameters,
        task=cluster_pb2.MODEL_TASK_EMBED,
        embedding_size=spec.embedding_size,
    )


def _generation_defaults(folder: Path) -> cluster_pb2.GenerationDefaults:
    defaults = read_generation_defaults(folder)
    said = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    return cluster_pb2.GenerationDefaults(**said)


def _has_chat_template(folder: Path) -> bool:
    """A file of its own since transformers 5, a key of the tokenizer's config before."""
    if (folder / "chat_template.jinja").is_file():
        return True
    name = "tokenizer_config.json"
    return (folder / name).is_file() and bool(read_json(folder, name).get("chat_template"))
