"""The processes a benchmark starts for itself, and what they cost."""

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
        child(command, stdout=subprocess.PIPE, stderr=stderr, env=environment) as up,
    ):
        assert up.stdout is not None
        for line in up.stdout:
            if _is_ready(line):
                yield psutil.Process(up.pid)
                _end(up)
                return
        raise BenchError(f"the stack did not start; see {log}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[psutil.Process]:
    """One process that listens on `port` when this yields."""
    with child([sys.executable, *command]) as process:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{' '.join(command)} did not start")
            time.sleep(0.02)
        yield psutil.Process(process.pid)
        _end(process)


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
def child(command: list[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """The block ends it. What still runs behind the block, because that was interrupted or has
    waited long enough, is killed with all below it."""
    # A session of its own: Ctrl-C in a terminal is for us.
    process = subprocess.Popen(bound_to_parent(command), start_new_session=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill_tree(psutil.Process(process.pid))
            process.wait()


def _end(process: "subprocess.Popen[Any]") -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS_MAX)


def _kill_tree(root: psutil.Process) -> None:
    """Returns when none of it runs, for until then it may write to what we remove."""
    tree = [root, *root.children(recursive=True)]
    for process in tree:  # the root first, for it would replace the others
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while any(map(_runs, tree)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """A zombie does not: whoever has to reap it may be slow."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_ready(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("event") == "ready")
    except (ValueError, AttributeError):
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
