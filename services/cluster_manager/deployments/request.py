"""Reads a request for a deployment; every refusal names the field."""

import re
from pathlib import Path

from deepflow.core.model_folder import ModelFolderError, read_json
from deepflow.core.model_spec import ModelSpec, model_revision
from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2

DEVICES = ("cpu", "emulated:zero", "emulated:ascend-910b", "emulated:h200")
REPLICAS_MAX = 64
NAME_LENGTH_MAX = 128
# Names travel in URLs, record keys and logs: "demo", "meta-llama/Llama-3.2-1B".
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def check_deployment(asked: cluster_pb2.Deployment) -> None:
    check_name(asked.name)
    if asked.device not in DEVICES:
        raise InvalidRequest(
            f"device {asked.device!r} is not known; choices: {', '.join(DEVICES)}", param="device"
        )
    if not 1 <= asked.replicas <= REPLICAS_MAX:
        raise InvalidRequest(
            f"replicas is {asked.replicas}; it must be from 1 to {REPLICAS_MAX}", param="replicas"
        )
    if not Path(asked.source).is_absolute():
        raise InvalidRequest(
            f"source {asked.source!r} must be the absolute path of a model folder", param="source"
        )


def check_name(name: str) -> str:
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name {name!r} must have 1 to {NAME_LENGTH_MAX} letters, digits and . _ - (parts may"
            " be joined by /), and begin with a letter or digit",
            param="name",
        )
    return name


def read_facts(source: str) -> cluster_pb2.ModelFacts:
    """Reads files: not for the event loop."""
    folder = Path(source)
    try:
        spec, revision = ModelSpec.from_folder(folder), model_revision(folder)
        has_chat_template = _has_chat_template(folder)
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
    )


def _has_chat_template(folder: Path) -> bool:
    """A file of its own since transformers 5, a key of the tokenizer's config before."""
    if (folder / "chat_template.jinja").is_file():
        return True
    name = "tokenizer_config.json"
    return (folder / name).is_file() and bool(read_json(folder, name).get("chat_template"))
