import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from deepflow.health import route
from deepflow.lifecycle import Lifecycle, bound_to_parent
from deepflow.v1 import types_pb2 as types


def test_draining_is_left_only_for_stopped() -> None:
    lifecycle = Lifecycle()
    lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
    lifecycle.to(types.LIFECYCLE_STATE_READY)
    assert lifecycle.word == "draining"
    lifecycle.to(types.LIFECYCLE_STATE_STOPPED)
    assert lifecycle.word == "stopped"


def test_steps_are_timed_and_listeners_told() -> None:
    lifecycle = Lifecycle()
    seen: list[str] = []
    lifecycle.on_change(lambda: seen.append(lifecycle.word))
    with lifecycle.step("boil"):
        assert lifecycle.detail == "boil"
    lifecycle.to(types.LIFECYCLE_STATE_READY)
    assert lifecycle.step_seconds["boil"] >= 0
    assert lifecycle.detail == ""
    assert seen == ["ready"]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (types.LIFECYCLE_STATE_STARTING, "503"),
        (types.LIFECYCLE_STATE_BLANK, "200"),
        (types.LIFECYCLE_STATE_READY, "200"),
        (types.LIFECYCLE_STATE_DRAINING, "503"),
    ],
)
def test_readiness_follows_the_state(state: types.LifecycleState.ValueType, status: str) -> None:
    lifecycle = Lifecycle()
    lifecycle.to(state)
    assert route("GET /ready HTTP/1.1", lifecycle)[0].startswith(status)
    assert route("GET /health HTTP/1.1", lifecycle)[0].startswith("200")


def test_unknown_routes_and_methods_are_refused() -> None:
    assert route("GET /secrets HTTP/1.1", Lifecycle())[0].startswith("404")
    assert route("POST /ready HTTP/1.1", Lifecycle())[0].startswith("405")


def test_a_child_dies_with_its_killed_parent() -> None:
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    code = (
        "import subprocess, time;"
        "from deepflow.lifecycle import bound_to_parent;"
        f"p = subprocess.Popen(bound_to_parent({sleeper!r}), stdout=subprocess.PIPE);"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 60
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child outlived its parent"
            os.sched_yield()


def test_a_bound_command_runs_as_itself() -> None:
    command = bound_to_parent([sys.executable, "-c", "import sys; print(sys.argv[1:])", "a", "b"])
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        "['a', 'b']\n"
    )
