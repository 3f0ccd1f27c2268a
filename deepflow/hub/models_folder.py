"""Where fetched models lie: <root>/<org>/<name>/<commit>, complete or still growing."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from deepflow.hub.errors import HubError
from deepflow.hub.listing import Listing
from deepflow.hub.repository import Repository, is_commit

# Written last: what it lists was fetched whole and checked.
MANIFEST = ".fetched.json"


def default_models_folder() -> Path:
    if named := os.environ.get("DEEPFLOW_MODELS_DIR"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "deepflow" / "models"


class ModelHome:
    """All commits of one model."""

    def __init__(self, root: Path, repository: Repository) -> None:
        self._folder = root / repository.organisation / repository.name
        self._revision = repository.revision
        self._ref = self._folder / "refs" / quote(repository.revision, safe="")

    def commit_folder(self, commit: str) -> Path:
        return self._folder / commit

    def find(self) -> Path | None:
        """The complete folder that the revision meant when it was last asked for."""
        commit = self._revision
        if not is_commit(commit):
            try:
                commit = self._ref.read_text().strip()
            except OSError:
                return None
        folder = self.commit_folder(commit)
        return folder if is_commit(commit) and is_complete(folder) else None

    def note(self, listing: Listing) -> None:
        """The folder is complete, and is what the revision means now."""
        _write(
            self.commit_folder(listing.commit) / MANIFEST,
            json.dumps({file.path: file.size for file in listing.files}),
        )
        _write(self._ref, listing.commit)

    @contextlib.contextmanager
    def held(self, wait: Callable[[], None]) -> Iterator[None]:
        """One fetches at a time; `wait` is called where another one does."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise HubError(
                f"cannot use {self._folder}: {error.strerror}; choose another folder for models"
                " with DEEPFLOW_MODELS_DIR"
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all((folder / path).stat().st_size == size for path, size in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)
