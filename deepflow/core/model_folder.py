"""The files of a model folder: JSON, safetensors headers, digests. Weights are never read here."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The format's own limit: a longer header is damage or an attack, not a model.
HEADER_BYTES_MAX = 100_000_000
JSON_BYTES_MAX = 100_000_000
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# All that decides which tokens a text becomes and which tensors those meet.
_DIGESTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    # Of encoders: how the vectors of a text's tokens become one.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class ModelFolderError(ValueError):
    """The folder does not hold a model that can be served; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where one tensor lies in its safetensors file."""

    name: str
    file: Path
    dtype: str  # as the format spells it: F32, BF16, ...
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder")
    if not path.is_file():
        raise ModelFolderError(f"{path}: no such file")
    if path.stat().st_size > JSON_BYTES_MAX:
        raise ModelFolderError(f"{path}: larger than {JSON_BYTES_MAX} bytes")
    return _parse_object(path, path.read_bytes())


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files, sorted: the usual one, else those that the index names, else every one."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    weight_map = read_json(folder, _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFolderError(f"{folder / _INDEX}: weight_map is missing")
    files = sorted({_inside(folder, name) for name in weight_map.values()})
    for file in files:
        if not file.is_file():
            raise ModelFolderError(f"{file}: named by {_INDEX}, but not there")
    return files


def read_tensor_headers(folder: Path) -> list[TensorHeader]:
    """Every tensor of the folder by name; no name twice. Empty where there are no weights."""
    headers: dict[str, TensorHeader] = {}
    for file in safetensors_files(folder):
        for header in _parse_headers(file):
            if header.name in headers:
                raise ModelFolderError(
                    f"{file}: tensor {header.name} is also in {headers[header.name].file.name}"
                )
            headers[header.name] = header
    return list(headers.values())


def digest_folder(folder: Path) -> str:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder")
    digest = hashlib.blake2b(digest_size=16)
    for name in _DIGESTED:
        path = folder / name
        if path.is_file():
            _add(digest, name, path.stat().st_size, path.read_bytes())
    for file in safetensors_files(folder):
        _add(digest, file.name, file.stat().st_size, _header_bytes(file))
    return digest.hexdigest()


def _add(digest: "hashlib.blake2b", name: str, size: int, content: bytes) -> None:
    """Lengths first, so that no two lists of files give the same bytes."""
    digest.update(f"{name} {size} {len(content)}\n".encode())
    digest.update(content)


def _inside(folder: Path, name: object) -> Path:
    """An index names plain files of its own folder, nothing else."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ModelFolderError(f"{folder / _INDEX}: {name!r} is no safetensors file name")
    return folder / name


def _header_bytes(file: Path) -> bytes:
    """A file starts with the header's length (8 bytes, little-endian), then the header (JSON)."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        available = file.stat().st_size - 8
        if not 0 < length <= min(HEADER_BYTES_MAX, available):
            raise ModelFolderError(f"{file}: not a safetensors file (header of {length} bytes)")
        return stream.read(length)


def _parse_headers(file: Path) -> list[TensorHeader]:
    entries = _parse_object(file, _header_bytes(file))
    entries.pop("__metadata__", None)
    return [_parse_header(file, name, entry) for name, entry in entries.items()]


def _parse_header(file: Path, name: str, entry: Any) -> TensorHeader:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape)} if all(type(n) is int for n in shape):
            return TensorHeader(name, file, dtype, tuple(shape))
    raise ModelFolderError(f"{file}: the header of tensor {name} is damaged")


def _parse_object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, nested too deep
        raise ModelFolderError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: must hold a JSON object")
    return value
