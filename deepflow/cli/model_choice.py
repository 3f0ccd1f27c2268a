"""Checks the model that a person names before anything is started, and fetches it from a hub."""

from pathlib import Path

from deepflow.cli.common import EXIT_BAD_OPTION, fail
from deepflow.core.devices import DEVICE_DTYPES
from deepflow.core.engine_policies import POLICIES, SLO
from deepflow.core.repository import Repository, parse_repository
from deepflow.core.sizes import parse_bytes
from deepflow.core.tool_formats import TOOL_FORMATS
from deepflow.demo import MODEL_DIR
from deepflow.errors import InvalidRequest
from deepflow.local.progress import ModelChoice
from services.cluster_manager.deployments.request import check_name

DEMO_NAME = "demo"
KV_BYTES_MAX = 1 << 50  # beyond any machine, and well within a number on the wire


def choose_model(
    model: str | Path | None,
    name: str | None,
    device: str,
    task_executors: int,
    *,
    dtype: str = "",
    max_tokens: int = 0,
    kv_memory: str = "",
    kv_dram: str = "",
    kv_disk: str = "",
    tool_format: str = "",
    policy: str = "",
    tpot_ms: int = 0,
    ttft_ms: int = 0,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    is_here: bool = True,
    as_json: bool = False,
) -> ModelChoice:
    """Ends the command with a sentence where something is missing.

    `is_here`: whether this machine loads the model, so that its folder can be looked at.
    """
    _check_given(model, name)
    _check_choice("--device", device, tuple(DEVICE_DTYPES))
    _check_choice("--dtype", dtype or DEVICE_DTYPES[device][0], DEVICE_DTYPES[device])
    _check_choice("--tool-format", tool_format or TOOL_FORMATS[0], TOOL_FORMATS)
    _check_choice("--policy", policy or POLICIES[0], POLICIES)
    if (tpot_ms or ttft_ms) and policy != SLO:
        fail(f"--tpot-ms and --ttft-ms are targets of --policy {SLO}", EXIT_BAD_OPTION)
    if tensor_parallel * pipeline_parallel > 1 and device.startswith("emulated:"):
        fail(
            f"--tp and --pp: the device {device} emulates one accelerator and no links between"
            " several",
            EXIT_BAD_OPTION,
        )
    kv_bytes = _kv_bytes("--kv-memory", kv_memory)
    kv_dram_bytes, kv_disk_bytes = _kv_bytes("--kv-dram", kv_dram), _kv_bytes("--kv-disk", kv_disk)
    repository = _repository(model)
    if repository is not None:
        # Before the download: a name that cannot be used should not cost one.
        _check_name(name or repository.id)
        source, usual_name = _fetch(repository, as_json), repository.id
    else:
        source = Path(model or MODEL_DIR).expanduser().absolute()
        usual_name = source.name if model else DEMO_NAME
    missing = _missing(source, device) if is_here or repository else ""
    if missing:
        fail(f"the model {source}: {missing}", EXIT_BAD_OPTION)
    return ModelChoice(
        _check_name(name or usual_name),
        source,
        device,
        task_executors,
        dtype=dtype,
        max_tokens=max_tokens,
        kv_bytes=kv_bytes,
        tool_format=tool_format,
        policy=policy,
        tpot_ms=tpot_ms,
        ttft_ms=ttft_ms,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        kv_dram_bytes=kv_dram_bytes,
        kv_disk_bytes=kv_disk_bytes,
    )


def _repository(model: str | Path | None) -> Repository | None:
    """The hub's model that is meant; None for a folder. A folder that is there goes first."""
    if model is None or isinstance(model, Path):
        return None
    is_path = model.startswith(("/", "./", "../", "~")) or model in (".", "..")
    if is_path or Path(model).is_dir():
        return None
    repository = parse_repository(model)
    if repository is None:
        fail(
            f"the model {model!r} is no folder here, and no hub id either (ORG/NAME, or"
            " ORG/NAME@REVISION)",
            EXIT_BAD_OPTION,
        )
    return repository


def _fetch(repository: Repository, as_json: bool) -> Path:
    from deepflow.cli.fetch_reporter import fetch_watcher
    from deepflow.core.fetched_models import default_models_folder
    from deepflow.hub.client import HubSettings
    from deepflow.hub.errors import HubError
    from deepflow.hub.fetch import fetch_model

    settings = HubSettings.from_environment()
    with fetch_watcher(repository.id, as_json) as watcher:
        try:
            return fetch_model(repository, default_models_folder(), settings, watcher)
        except HubError as error:
            message = str(error)
    fail(message)


def _check_given(model: str | Path | None, name: str | None) -> None:
    """An empty one is a variable that was never set: not the demo model, nor the usual name."""
    if model is not None and not str(model):
        fail("the model is empty; name a folder, or a hub id as ORG/NAME", EXIT_BAD_OPTION)
    if name is not None:
        _check_name(name)


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        fail(f"{option} {value} is not known: choose {', '.join(choices)}", EXIT_BAD_OPTION)


def _check_name(name: str) -> str:
    try:
        return check_name(name)
    except InvalidRequest as error:
        fail(f"{error.message}; choose another with --name", EXIT_BAD_OPTION)


def _kv_bytes(option: str, text: str) -> int:
    if not text:
        return 0
    try:
        count = parse_bytes(text)
    except ValueError as error:
        fail(f"{option} {error}", EXIT_BAD_OPTION)
    if not 1 <= count <= KV_BYTES_MAX:
        fail(f"{option} {text} must be from 1 byte to 1 PiB", EXIT_BAD_OPTION)
    return count


def _missing(source: Path, device: str) -> str:
    """What keeps the folder from being a model; empty where nothing does."""
    if not source.is_dir():
        return "there is no such folder"
    absent = [name for name in ("config.json", "tokenizer.json") if not (source / name).is_file()]
    # An emulated device computes nothing, so it needs no weights.
    if not device.startswith("emulated:") and not any(source.glob("*.safetensors")):
        absent.append("*.safetensors")
    if not absent:
        return ""
    return f"{' and '.join(absent)} missing: a model folder holds them as Hugging Face writes them"
