"""How the vectors of a text's tokens become one: what modules.json and its folders say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError, read_json

MODULES_FILE = "modules.json"
MODULES_BYTES_MAX = 1 << 20
POOLINGS = ("mean", "cls", "max")
_LEGACY = "pooling_mode_"
_LEGACY_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
# What can be run, in this order; the last may be missing.
_CHAIN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    pooling: str = "mean"
    normalizes: bool = True


def read_pooling(folder: Path, hidden_size: int) -> PoolingSpec:
    """A folder without modules.json is pooled as most are: the mean, at length one."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return PoolingSpec()
    modules = _read_modules(path)
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in _CHAIN:
            raise ModelFolderError(
                f"{path}: module {kind!r} is not supported; supported: {', '.join(_CHAIN)}"
            )
    if kinds not in (list(_CHAIN), list(_CHAIN[:2])):
        raise ModelFolderError(
            f"{path}: the modules are {', '.join(kinds)}; "
            "they must be Transformer, Pooling and, where wanted, Normalize"
        )
    if modules[0][1]:
        raise ModelFolderError(f"{path}: the path of the Transformer must be empty")
    return PoolingSpec(_read_mode(folder / modules[1][1], hidden_size), "Normalize" in kinds)


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module; the kind is the last word of its type."""
    if path.stat().st_size > MODULES_BYTES_MAX:
        raise ModelFolderError(f"{path}: larger than {MODULES_BYTES_MAX} bytes")
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(entries, list):
        raise ModelFolderError(f"{path}: must hold a JSON array")
    return [_read_module(path, entry) for entry in entries]


def _read_module(path: Path, entry: Any) -> tuple[str, str]:
    match entry:
        case {"type": str(kind), "path": str(folder)} if _is_inside(folder):
            return kind.rpartition(".")[2], folder
    raise ModelFolderError(f"{path}: a module needs a type, and a path inside the model's folder")


def _is_inside(folder: str) -> bool:
    parts = Path(folder).parts
    return not Path(folder).is_absolute() and ".." not in parts


def _read_mode(folder: Path, hidden_size: int) -> str:
    config = read_json(folder, "config.json")
    path = folder / "config.json"
    size = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if size != hidden_size:
        raise ModelFolderError(f"{path}: pools vectors of {size!r}, the model makes {hidden_size}")
    modes = _modes(config)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelFolderError(
            f"{path}: pooling {' + '.join(map(str, modes)) or 'by nothing'} is not supported; "
            f"supported: one of {', '.join(POOLINGS)}"
        )
    return str(modes[0])


def _modes(config: dict[str, Any]) -> list[Any]:
    """`pooling_mode` names them; older folders hold one flag for each instead."""
    mode = config.get("pooling_mode")
    if mode is not None:
        return list(mode) if isinstance(mode, list) else [mode]
    flags = {k.removeprefix(_LEGACY): v for k, v in config.items() if k.startswith(_LEGACY)}
    if not flags:
        return ["mean"]
    return [_LEGACY_NAMES.get(name, name) for name, is_on in flags.items() if is_on]
