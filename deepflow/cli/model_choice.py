"""Checks the model that a person names before anything is started."""

from pathlib import Path

from deepflow.cli.common import EXIT_BAD_OPTION, fail
from deepflow.demo import MODEL_DIR
from deepflow.errors import InvalidRequest
from deepflow.local.progress import ModelChoice
from services.cluster_manager.deployments.request import DEVICES, check_name

DEMO_NAME = "demo"


def choose_model(
    folder: Path | None, name: str | None, device: str, task_executors: int
) -> ModelChoice:
    """Ends the command with a sentence where something is missing."""
    if device not in DEVICES:
        fail(f"--device {device} is not known: choose {', '.join(DEVICES)}", EXIT_BAD_OPTION)
    source = (folder or MODEL_DIR).expanduser().absolute()
    missing = _missing(source, device)
    if missing:
        fail(f"--model {source}: {missing}", EXIT_BAD_OPTION)
    name = name or (source.name if folder else DEMO_NAME)
    try:
        check_name(name)
    except InvalidRequest as error:
        fail(f"{error.message}; choose another with --name", EXIT_BAD_OPTION)
    return ModelChoice(name, source, device, task_executors)


def _missing(source: Path, device: str) -> str:
    """What keeps the folder from being a model; empty where nothing does."""
    if not source.is_dir():
        return "there is no such folder"
    absent = [name for name in ("config.json", "tokenizer.json") if not (source / name).is_file()]
    # An emulated device computes nothing, so it needs no weights.
    if device == "cpu" and not any(source.glob("*.safetensors")):
        absent.append("*.safetensors")
    if not absent:
        return ""
    return f"{' and '.join(absent)} missing: a model folder holds them as Hugging Face writes them"
