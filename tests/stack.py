"""A real local stack for end-to-end tests: `deepflow up` as a child, in a folder of its own."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from deepflow.lifecycle import bound_to_parent
from tests.servers import free_port

# Generous, all of them: tests promise outcomes, benchmarks measure times.
LIVENESS_SECONDS = 90.0
DOWN_SECONDS_MAX = 90.0
COMMAND_SECONDS_MAX = 150.0
MEMBERS = ("gateway", "job_executor", "task_executor", "cluster_manager", "kv_store")
ANSWER_SECONDS_MAX = 30.0


def wait_until(condition: Callable[[], bool], what: str, seconds: float = LIVENESS_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)


@dataclass
class Stack:
    url: str
    data_dir: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deepflow.cli.main", *arguments]
        command += ["--data-dir", str(self.data_dir)]
        return subprocess.run(
            command, capture_output=True, text=True, check=check, timeout=COMMAND_SECONDS_MAX
        )

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cli("status", "--json").stdout)
        return answer

    def processes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.status()["processes"]
        return rows

    def members(self) -> list[dict[str, Any]]:
        """The processes that are members of the cluster, with their addresses."""
        return [row for row in self.processes() if row.get("health_address")]

    def wait_until_all_are_members(self) -> None:
        """A stack is ready before its kv_store and its gateways are known to everybody."""

        def is_whole() -> bool:
            ours = [row for row in self.processes() if row["service"] in MEMBERS]
            return all(row.get("health_address") for row in ours)

        wait_until(is_whole, "everybody to be a member")

    def pid_of(self, service: str) -> int:
        return next(int(row["pid"]) for row in self.processes() if row["service"] == service)

    def engine(self) -> psutil.Process:
        shell = psutil.Process(self.pid_of("task_executor"))
        return next(it for it in shell.children() if any("flowserve" in a for a in it.cmdline()))

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def metrics(self, service: str) -> str:
        """Of the first process of a service."""
        row = next(row for row in self.members() if row["service"] == service)
        address = row["health_address"]
        return httpx.get(f"http://{address}/metrics", timeout=ANSWER_SECONDS_MAX).text

    def answers(self, timeout: float = ANSWER_SECONDS_MAX) -> bool:
        """Whether one short request is served."""
        with contextlib.suppress(httpx.HTTPError):
            models = httpx.get(f"{self.url}/v1/models", timeout=timeout).json().get("data", [])
            body = {"model": models[0]["id"], "prompt": "hi", "max_tokens": 1} if models else {}
            reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout)
            return reply.status_code == 200
        return False

    def wait_until_it_answers(self) -> None:
        wait_until(self.answers, "the stack serves again")


@contextlib.contextmanager
def running_stack(data_dir: Path, *arguments: str) -> Iterator[Stack]:
    """Up and serving when this yields; gone, with every process, afterwards."""
    port = free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "up.stderr"
    command = [sys.executable, "-m", "deepflow.cli.main", "up", "--json", "--port", str(port)]
    command += ["--data-dir", str(data_dir), *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            bound_to_parent(command),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    stack = Stack(f"http://127.0.0.1:{port}", data_dir, process)
    try:
        _wait_for_ready(process, log)
        yield stack
    finally:
        family = stack.family() if process.poll() is None else []
        code = _end(process)
        _, alive = psutil.wait_procs(family, timeout=DOWN_SECONDS_MAX)
    assert not alive, f"left behind: {alive}"
    assert code in (0, -signal.SIGKILL), f"exit code {code}; see {log}"


def _end(process: subprocess.Popen[str]) -> int:
    """SIGTERM, and whoever does not end of it is killed, so that no later test meets it."""
    assert process.stdout is not None
    with process.stdout:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(DOWN_SECONDS_MAX)
        finally:
            process.kill()
            process.wait()


def _wait_for_ready(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if json.loads(line).get("event") == "ready":
            return
    raise AssertionError(f"the stack did not start:\n{''.join(seen)}\n{log.read_text()[-4000:]}")
