"""The files of one commit, as the hub lists them, and which of them a served model needs: pure."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deepflow.core.repository import Repository, is_commit
from deepflow.hub.errors import BadAnswer, HubError

FILES_MAX = 10_000
PATH_LENGTH_MAX = 255
# Configuration, tokenizers in any of their forms, chat templates. Never code, never pickles.
_SMALL_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_WEIGHTS = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
# Of what lies in folders only the pooling of embedding models is read.
_NESTED = re.compile(r"\d+_[A-Za-z]+/config\.json")


@dataclass(frozen=True, slots=True)
class HubFile:
    path: str
    size: int
    sha256: str = ""  # of large files
    git_sha1: str = ""  # of the others: of git's header and the content


@dataclass(frozen=True, slots=True)
class Listing:
    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def parse_listing(answer: Any) -> Listing:
    """Raises BadAnswer."""
    match answer:
        case {"sha": str(commit), "siblings": list(siblings)} if is_commit(commit):
            if len(siblings) > FILES_MAX:
                raise BadAnswer(f"the hub lists {len(siblings)} files; {FILES_MAX} are the most")
            return Listing(commit, tuple(_parse_file(sibling) for sibling in siblings))
    raise BadAnswer("the hub's answer lists no files: is this the address of a model hub?")


def _parse_file(sibling: Any) -> HubFile:
    match sibling:
        case {"rfilename": str(path), "lfs": {"sha256": str(sha256), "size": int(size)}}:
            return HubFile(path, size, sha256=sha256)
        case {"rfilename": str(path), "blobId": str(git_sha1), "size": int(size)}:
            return HubFile(path, size, git_sha1=git_sha1)
    raise BadAnswer("the hub lists a file without size and checksum")


def select(listing: Listing, repository: Repository) -> Listing:
    """Only what is needed to serve. Raises HubError where that cannot be enough."""
    safe = [file for file in listing.files if _is_safe(file.path)]
    small = [file for file in safe if _is_small(file.path)]
    weights = _weights(safe)
    if not any(file.path == "config.json" for file in small):
        raise HubError(f"{repository} holds no config.json: it is no model for transformers")
    if not weights:
        raise HubError(_why_no_weights(safe, repository))
    return Listing(listing.commit, tuple(small + weights))


def _weights(files: list[HubFile]) -> list[HubFile]:
    """Those that transformers reads; other copies of the same weights may lie beside them."""
    found = [f for f in files if "/" not in f.path and f.path.endswith(_WEIGHTS)]
    usual = [file for file in found if file.path.startswith("model")]
    return usual or [file for file in found if not file.path.startswith("consolidated")]


def _is_small(path: str) -> bool:
    if "/" in path:
        return _NESTED.fullmatch(path) is not None
    return path.endswith(_SMALL_SUFFIXES)


def _is_safe(path: str) -> bool:
    """A path that stays inside the folder it is written to, on any file system."""
    parts = PurePosixPath(path).parts
    return (
        0 < len(path) <= PATH_LENGTH_MAX
        and path == "/".join(parts)
        and not path.startswith("/")
        and all(part not in (".", "..") and not part.startswith(".") for part in parts)
        and path.isprintable()
        and "\\" not in path
    )


def _why_no_weights(files: list[HubFile], repository: Repository) -> str:
    pickled = sorted(file.path for file in files if file.path.endswith(_PICKLED))
    if not pickled:
        return f"{repository} holds no safetensors weights"
    return f"{repository} holds no safetensors weights, and {pickled[0]} is never read"
