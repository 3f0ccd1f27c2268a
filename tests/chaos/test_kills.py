"""Real processes killed with real signals under a running stream."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos import slow_model
from tests.stack import Stack, running_stack, wait_until

pytestmark = pytest.mark.timeout(600)

BODY = {"prompt": "Once", "ignore_eos": True, "stream": True, "temperature": 0}
# Of about 12 ms each: many seconds in which a test may kill somebody, however busy the machine.
TOKENS = 900
# For a stream that is to be read to its end.
FEWER_TOKENS = 250
PATIENCE_SECONDS = 120.0
# A busy machine may hold an engine up; none is called hung for it.
SETTINGS = {
    "DEEPFLOW_TASK_EXECUTOR_HANG_FLOOR_SECONDS": "4",
    "DEEPFLOW_TASK_EXECUTOR_SUSPENDED_SECONDS": "600",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An emulated accelerator: steps take a while, and a stopped engine is soon called hung."""
    folder = tmp_path_factory.mktemp("chaos")
    options = ["--model", str(slow_model.write(folder / "slow")), "--device", slow_model.DEVICE]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SETTINGS.items():
            environment.setenv(name, value)
        with running_stack(
            folder / "data", *options, "--kv-memory", slow_model.KV_MEMORY
        ) as running:
            yield running


class LongStream:
    """A streamed answer that a thread reads to its end."""

    def __init__(self, stack: Stack, tokens: int = TOKENS) -> None:
        self._stack = stack
        self._body = BODY | {"model": "slow", "max_tokens": tokens}
        self.events: list[dict[str, Any]] = []
        self.ended_with_done = False
        self.broken: httpx.HTTPError | None = None
        self.flowing = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "LongStream":
        self._thread.start()
        assert self.flowing.wait(PATIENCE_SECONDS), "no token came"
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the client hangs"

    @property
    def error(self) -> dict[str, Any] | None:
        return next((e["error"] for e in self.events if "error" in e), None)

    @property
    def text(self) -> str:
        return "".join(c["text"] for e in self.events for c in e.get("choices", []))

    def _read(self) -> None:
        url = f"{self._stack.url}/v1/completions"
        try:
            with httpx.stream("POST", url, json=self._body, timeout=PATIENCE_SECONDS) as reply:
                assert reply.status_code == 200, reply.read()
                for line in reply.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.broken = error

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.ended_with_done = True
        elif line.startswith("data: "):
            self.events.append(json.loads(line.removeprefix("data: ")))
            if len(self.events) >= 5:
                self.flowing.set()


def row_of(stack: Stack, service: str) -> dict[str, Any]:
    return next(row for row in stack.processes() if row["service"] == service)


def is_back(stack: Stack, service: str, old_pid: int) -> bool:
    row = row_of(stack, service)
    return row["pid"] not in (None, 0, old_pid) and psutil.pid_exists(row["pid"])


@pytest.mark.parametrize("service", ["task_executor", "job_executor"])
def test_a_stream_that_loses_its_executor_ends_in_one_clean_error(
    stack: Stack, service: str
) -> None:
    pid = stack.pid_of(service)
    with LongStream(stack) as stream:
        os.kill(pid, signal.SIGKILL)
    assert stream.broken is None
    assert stream.error is not None
    assert stream.error["message"]
    assert stream.ended_with_done
    wait_until(lambda: is_back(stack, service, pid), f"{service} is back")
    stack.wait_until_it_answers()


def test_a_killed_engine_is_replaced_inside_its_shell(stack: Stack) -> None:
    shell, engine = stack.pid_of("task_executor"), stack.engine()
    with LongStream(stack) as stream:
        engine.kill()
    assert stream.error is not None
    assert stream.ended_with_done
    stack.wait_until_it_answers()
    assert stack.pid_of("task_executor") == shell
    assert stack.engine().pid != engine.pid


def test_a_hung_engine_is_seen_by_its_shell_and_replaced(stack: Stack) -> None:
    engine = stack.engine()
    with LongStream(stack) as stream:
        engine.suspend()
    assert stream.error is not None
    wait_until(lambda: not engine.is_running(), "the hung engine is gone")
    stack.wait_until_it_answers()


@pytest.mark.parametrize("service", ["cluster_manager", "kv_store", "nats", "redis"])
def test_streams_do_not_feel_the_control_plane_die(stack: Stack, service: str) -> None:
    stack.wait_until_it_answers()
    with LongStream(stack, FEWER_TOKENS) as undisturbed:
        pass
    pid = stack.pid_of(service)
    with LongStream(stack, FEWER_TOKENS) as stream:
        os.kill(pid, signal.SIGKILL)
    assert stream.broken is None
    assert stream.error is None
    assert stream.ended_with_done
    assert stream.text == undisturbed.text
    wait_until(lambda: is_back(stack, service, pid), f"{service} is back")
    stack.wait_until_it_answers()


def test_a_killed_gateway_comes_back_on_its_port(stack: Stack) -> None:
    pid = stack.pid_of("gateway")
    with LongStream(stack) as stream:
        os.kill(pid, signal.SIGKILL)
    assert stream.broken is not None
    stack.wait_until_it_answers()


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    with running_stack(tmp_path / "data", "--device", "emulated:zero") as stack:
        family = stack.family()
        assert len(family) >= 8
        stack.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(family[1:], timeout=PATIENCE_SECONDS)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_what_was_killed_starts_again_from_the_same_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with running_stack(tmp_path / "data", "--device", "emulated:zero") as stack:
            assert stack.answers()
            stack.process.send_signal(signal.SIGKILL)
            stack.process.wait()
