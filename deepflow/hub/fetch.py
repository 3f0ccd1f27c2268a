"""A model from its hub id to a folder on this machine."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepflow.core.repository import Repository
from deepflow.core.sizes import MIB, format_bytes
from deepflow.hub.client import HubClient, HubSettings
from deepflow.hub.download import FileDownload, part_of
from deepflow.hub.errors import HubError, Offline
from deepflow.hub.listing import HubFile, Listing, select
from deepflow.hub.models_folder import ModelHome

# Left free beyond the model itself.
DISK_SLACK_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class FetchProgress:
    file: str
    done: int  # bytes of the whole model
    total: int


class Watcher(Protocol):
    """Whoever shows a person how far it is."""

    def note(self, text: str) -> None: ...

    def progress(self, progress: FetchProgress) -> None: ...


def fetch_model(
    repository: Repository, root: Path, settings: HubSettings, watcher: Watcher
) -> Path:
    """The folder of the model, complete and checked. Raises HubError.

    A revision that is a commit never asks the hub again once it is here; a branch asks what it
    means now, and where the hub cannot be reached means what it meant last.
    """
    home = ModelHome(root, repository)
    here = home.find()
    if here is not None and (here.name == repository.revision or settings.is_offline):
        return here
    if settings.is_offline:
        raise Offline(f"HF_HUB_OFFLINE is set, and {repository} is not in {root}")
    waiting = f"another process fetches {repository.id}: waiting for it"
    try:
        with home.held(lambda: watcher.note(waiting)), HubClient(settings) as client:
            listing = select(client.list_files(repository), repository)
            return _Fetch(client, repository, home, listing, watcher).run()
    except Offline as error:
        if here is None:
            raise
        watcher.note(f"{error}; going on with what was fetched before")
        return here
    except OSError as error:
        raise HubError(f"cannot write to {root}: {error.strerror or error}") from error


class _Fetch:
    def __init__(
        self,
        client: HubClient,
        repository: Repository,
        home: ModelHome,
        listing: Listing,
        watcher: Watcher,
    ) -> None:
        self._client = client
        self._repository = repository
        self._home = home
        self._listing = listing
        self._watcher = watcher
        self._folder = home.commit_folder(listing.commit)
        self._done = 0

    def run(self) -> Path:
        """Files that have their name already are whole: they got it after their check."""
        missing = [file for file in self._listing.files if not self._has(file)]
        self._done = self._listing.size - sum(file.size for file in missing)
        if missing:
            self._require_disk(missing)
        for file in missing:
            self._download(file)
        self._home.note(self._listing)
        return self._folder

    def _has(self, file: HubFile) -> bool:
        path = self._folder / file.path
        return path.is_file() and path.stat().st_size == file.size

    def _require_disk(self, missing: list[HubFile]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = [part_of(self._folder / file.path) for file in missing]
        here = sum(part.stat().st_size for part in parts if part.is_file())
        needed = sum(file.size for file in missing) - here
        free = shutil.disk_usage(self._folder).free
        if needed + DISK_SLACK_BYTES > free:
            raise HubError(
                f"{self._repository} needs {format_bytes(needed)} more on the disk of"
                f" {self._folder}, which has {format_bytes(free)} left; free some, or choose"
                " another folder for models with DEEPFLOW_MODELS_DIR"
            )

    def _download(self, file: HubFile) -> None:
        before = self._done
        download = FileDownload(
            self._client,
            self._repository,
            self._listing.commit,
            file,
            self._folder / file.path,
        )
        download.run(self._teller(file, before))
        self._done = before + file.size

    def _teller(self, file: HubFile, before: int) -> Callable[[int], None]:
        def tell(done: int) -> None:
            total = self._listing.size
            self._watcher.progress(FetchProgress(file.path, before + done, total))

        return tell
