"""Where models of a hub lie once they were fetched: <root>/<org>/<name>/<commit>."""

import json
import os
from pathlib import Path
from urllib.parse import quote

from deepflow.core.repository import Repository, is_commit

# Written last: what it lists was fetched whole and checked.
MANIFEST = ".fetched.json"


def default_models_folder() -> Path:
    if named := os.environ.get("DEEPFLOW_MODELS_DIR"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "deepflow" / "models"


def home_of(root: Path, repository: Repository) -> Path:
    """Of all commits of one model."""
    return root / repository.organisation / repository.name


def ref_of(root: Path, repository: Repository) -> Path:
    """The file that names the commit that the revision meant when it was last asked for."""
    return home_of(root, repository) / "refs" / quote(repository.revision, safe="")


def find_fetched(root: Path, repository: Repository) -> Path | None:
    """The complete folder of the revision; None where it was never fetched whole."""
    commit = repository.revision
    if not is_commit(commit):
        try:
            commit = ref_of(root, repository).read_text().strip()
        except OSError:
            return None
    folder = home_of(root, repository) / commit
    return folder if is_commit(commit) and is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return all((folder / path).stat().st_size == size for path, size in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False
