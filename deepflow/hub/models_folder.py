"""Where models are fetched to: folders that are complete, or still growing."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from deepflow.core.fetched_models import MANIFEST, find_fetched, home_of, ref_of
from deepflow.core.repository import Repository
from deepflow.hub.errors import HubError
from deepflow.hub.listing import Listing


class ModelHome:
    """All commits of one model."""

    def __init__(self, root: Path, repository: Repository) -> None:
        self._folder = home_of(root, repository)
        self._root, self._repository = root, repository
        self._ref = ref_of(root, repository)

    def commit_folder(self, commit: str) -> Path:
        return self._folder / commit

    def find(self) -> Path | None:
        """The complete folder that the revision meant when it was last asked for."""
        return find_fetched(self._root, self._repository)

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


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)
