"""Which model is meant: org/name, and optionally a revision of it."""

import re
from dataclasses import dataclass

# As the hub allows them; parts can never climb out of a folder.
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"({_PART})/({_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_REVISION = "main"


@dataclass(frozen=True, slots=True)
class Repository:
    organisation: str
    name: str
    revision: str = DEFAULT_REVISION

    @property
    def id(self) -> str:
        return f"{self.organisation}/{self.name}"

    def __str__(self) -> str:
        return self.id if self.revision == DEFAULT_REVISION else f"{self.id}@{self.revision}"


def parse_repository(text: str) -> Repository | None:
    """None for what is no hub id."""
    match = _REPOSITORY.fullmatch(text)
    if match is None or ".." in text or "--" in text:
        return None
    return Repository(match[1], match[2], match[3] or DEFAULT_REVISION)


def is_commit(revision: str) -> bool:
    """A name that can never mean other files tomorrow."""
    return _COMMIT.fullmatch(revision) is not None
