"""Reads the word with which every script's answer begins."""

from deepflow.errors import Conflict, DeepFlowError, TooLarge
from services.kv_store.redis_link import Reply, unavailable

NO_GENERATION = "records are not available: generation marker missing"


def checked(reply: Reply) -> Reply:
    """The answer without its first word; raises where that says that it went wrong."""
    word, rest = bytes(reply[0]).decode(), reply[1:]
    if word in ("ok", "absent", "held"):
        return rest
    raise _failure(word, rest)


def _failure(word: str, rest: Reply) -> DeepFlowError:
    match word:
        case "no-generation":
            return unavailable(NO_GENERATION)
        case "not-new":
            return unavailable(f"{NO_GENERATION}, though the record space is not empty")
        case "damaged":
            return unavailable(f"records are not available: {text(rest[0])} has lost its value")
        case "stale":
            return Conflict(
                f"the fencing token is stale; the highest given out is {text(rest[0])}",
                reason="stale_fencing_token",
            )
        case "conflict":
            return Conflict(f"the record is at version {rest[0]}", reason="version_conflict")
        case "too-large":
            return TooLarge("too many records under this prefix for one answer", param="prefix")
    raise AssertionError(f"a script answered {word!r}")


def text(value: bytes) -> str:
    return value.decode()
