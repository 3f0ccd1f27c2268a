"""Which folder is meant: a path, or the id of a hub's model that was fetched to this machine."""

from pathlib import Path

from deepflow.core.fetched_models import find_fetched
from deepflow.core.repository import parse_repository
from deepflow.errors import InvalidRequest

SHOWN_CHARACTERS_MAX = 256


def find_source(source: str, models: Path) -> str:
    """The absolute path. Reads files: not for the event loop."""
    if Path(source).is_absolute():
        return source
    shown = source[:SHOWN_CHARACTERS_MAX]
    repository = parse_repository(source)
    if repository is None:
        raise InvalidRequest(
            f"source {shown!r} must be the absolute path of a model folder, or the id of a hub's"
            " model, ORG/NAME or ORG/NAME@REVISION",
            param="source",
        )
    folder = find_fetched(models, repository)
    if folder is None:
        raise InvalidRequest(
            f"source {shown!r} is not in {models}, where the cluster manager looks for fetched"
            f" models: run 'deepflow deploy {repository}' there, or name a folder",
            param="source",
        )
    return str(folder)
