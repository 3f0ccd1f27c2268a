"""One line of a check-up."""

from enum import StrEnum

from msgspec import Struct


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # it runs, and not as well or as safely as it could
    FAIL = "fail"  # something that was asked for cannot work


class Finding(Struct, frozen=True):
    about: str
    level: Level
    says: str
    do: str = ""  # what a person can do about it


def fine(about: str, says: str) -> Finding:
    return Finding(about, Level.OK, says)


def warn(about: str, says: str, do: str) -> Finding:
    return Finding(about, Level.WARN, says, do)


def fail(about: str, says: str, do: str) -> Finding:
    return Finding(about, Level.FAIL, says, do)


def has_failed(findings: list[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)
