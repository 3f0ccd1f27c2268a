"""The servers a benchmark starts for itself, and what they cost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from deepflow.bench.sse_client import BenchError
from deepflow.lifecycle import bound_to_parent

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def stack(
    arguments: list[str], log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A whole local stack of its own (`deepflow up --json …`), ready when this yields.

    `settings`: environment variables of its services.
    """
    environment = os.environ | dict(settings or {})
    command = [sys.executable, "-m", "deepflow.cli.main", "up", "--json", *arguments]
    with (
        log.open("wb") as stderr,
        _child(command, stdout=subprocess.PIPE, stderr=stderr, env=environment) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if _is_ready(line):
                yield psutil.Process(child.pid)
                return
        raise BenchError(f"the stack did not start; see {log}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[psutil.Process]:
    """One process that listens on `port` when this yields."""
    with _child([sys.executable, *command]) as child:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _listens(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{' '.join(command)} did not start")
            time.sleep(0.02)
        yield psutil.Process(child.pid)


def cpu_seconds_by_name(root: psutil.Process) -> dict[str, float]:
    """CPU time that a process and all below it have used so far, by what each of them runs."""
    split: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            name = _name_of(process)
            split[name] = split.get(name, 0.0) + times.user + times.system
    return split


def _name_of(process: psutil.Process) -> str:
    command = process.cmdline()
    if "-m" in command:
        return command[command.index("-m") + 1].removeprefix("services.")
    return Path(command[0]).name if command else process.name()


@contextlib.contextmanager
def _child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(bound_to_parent(command), start_new_session=True, **options)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _is_ready(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("event") == "ready")
    except (ValueError, AttributeError):
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
