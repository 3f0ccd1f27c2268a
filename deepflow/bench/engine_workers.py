"""The engines of a benchmark: each runs in a process of its own, behind one protocol."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from deepflow.bench.peers.protocol import Setup
from deepflow.bench.processes import child
from deepflow.bench.sse_client import BenchError

STOP_SECONDS_MAX = 60.0


class Worker:
    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self._name, self._process, self._log = name, process, log
        self.ready_s = 0.0

    def ask(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise BenchError(f"{self._name} ended before its answer:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise BenchError(f"{self._name} cannot run this: {answer['refused']}")
        return answer


@contextlib.contextmanager
def worker_of(name: str, command: list[str], setup: Setup, scratch: Path) -> Iterator[Worker]:
    """Ready when this yields; ended, with all it started, when the block ends."""
    log = scratch / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as stderr, _process(command, stderr, scratch) as process:
        worker = Worker(name, process, log)
        try:
            worker.ask(asdict(setup))
            worker.answer()
            worker.ready_s = time.monotonic() - began
            yield worker
        except BrokenPipeError:
            worker.answer()  # raises with the end of the log
            raise


@contextlib.contextmanager
def _process(
    command: list[str], stderr: IO[bytes], scratch: Path
) -> "Iterator[subprocess.Popen[str]]":
    """The end of its input is its end. One that is killed leaves files in `scratch` alone."""
    pipe, environment = subprocess.PIPE, os.environ | {"TMPDIR": str(scratch)}
    with child(
        command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS_MAX)
