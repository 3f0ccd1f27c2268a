"""The supervisor with real children."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from deepflow.errors import Conflict, NotFound, Unavailable
from deepflow.local import process as process_module
from deepflow.local.process import ManagedProcess, ProcessSpec, ProcessState
from deepflow.local.restart_policy import RestartPolicy
from deepflow.local.supervisor import SHUTDOWN_ORDER, Supervisor
from tests.servers import until

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN);" + SLEEP
# Has a child of its own, whose pid it writes down, and does not care for it at its end.
PARENT = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('child', p.pid, 'up', flush=True); time.sleep(600)"
)
QUICK = RestartPolicy(first_seconds=0.01, max_seconds=0.05)


def spec(folder: Path, code: str, name: str = "child", service: str = "gateway") -> ProcessSpec:
    return ProcessSpec(
        name=name,
        service=service,
        command=(sys.executable, "-c", code),
        environment=dict(os.environ),
        log_file=folder / "logs" / f"{name}.log",
        grace_seconds=60,
    )


@contextlib.asynccontextmanager
async def supervising(policy: RestartPolicy = QUICK) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(policy)
    try:
        yield supervisor
    finally:
        supervisor.kill()
        await supervisor.shutdown()


async def is_up(child: ManagedProcess) -> None:
    await until(lambda: "up" in log_of(child), what="the child to say that it is up")


def log_of(child: ManagedProcess) -> str:
    path = child.spec.log_file
    return path.read_text() if path.exists() else ""


async def test_a_child_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        child = supervisor.start(spec(tmp_path, SLEEP))
        await is_up(child)
        assert child.pid is not None
        assert child.state is ProcessState.RUNNING
        assert os.getsid(child.pid) == child.pid
        stopped = await supervisor.stop("child")
    assert (stopped.state, stopped.exit_code) == (ProcessState.STOPPED, -signal.SIGTERM)
    assert supervisor.rows() == []


async def test_a_start_is_idempotent_by_name(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        child = supervisor.start(spec(tmp_path, SLEEP))
        assert supervisor.start(spec(tmp_path, SLEEP)) is child
        with pytest.raises(Conflict, match="choose another"):
            supervisor.start(spec(tmp_path, SLEEP, service="kv_store"))


async def test_a_killed_child_comes_back(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        child = supervisor.start(spec(tmp_path, SLEEP))
        await is_up(child)
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (first, None), what="another process")
        assert (child.restarts, child.exit_code) == (1, -signal.SIGKILL)
        await until(lambda: log_of(child).count("up") == 2, what="the log to go on")


async def test_a_child_that_keeps_failing_is_started_ever_more_slowly(tmp_path: Path) -> None:
    slow = RestartPolicy(first_seconds=0.05, max_seconds=600)
    async with supervising(slow) as supervisor:
        child = supervisor.start(spec(tmp_path, "raise SystemExit(7)"))
        began = time.monotonic()
        await until(lambda: child.failures >= 3, what="three failures")
        assert time.monotonic() - began >= 0.05 + 0.1
        assert child.exit_code == 7
        assert child.state is ProcessState.RESTARTING


async def test_a_stop_ends_the_wait_for_a_restart(tmp_path: Path) -> None:
    async with supervising(RestartPolicy(first_seconds=600, max_seconds=600)) as supervisor:
        child = supervisor.start(spec(tmp_path, "raise SystemExit(7)"))
        await until(lambda: child.state is ProcessState.RESTARTING, what="the back-off")
        await asyncio.wait_for(supervisor.stop("child"), 60)


async def test_a_deaf_child_and_its_children_are_killed_after_the_grace(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        child = supervisor.start(spec(tmp_path, DEAF.replace("import time", PARENT, 1)))
        await until(lambda: "child" in log_of(child), what="the grandchild")
        grandchild = psutil.Process(int(log_of(child).split()[1]))
        stopped = await supervisor.stop("child", grace_seconds=0.05)
        assert stopped.exit_code == -signal.SIGKILL
        await until(lambda: is_gone(grandchild), what="the grandchild to be gone")


async def test_a_child_may_end_its_work_within_the_grace(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time;"
        "signal.signal(15, lambda *_: (print('drained', flush=True), sys.exit(0)));" + SLEEP
    )
    async with supervising() as supervisor:
        child = supervisor.start(spec(tmp_path, code))
        await is_up(child)
        assert (await supervisor.stop("child")).exit_code == 0
        assert "drained" in log_of(child)


async def test_a_stop_right_after_the_start_leaves_nothing(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        supervisor.start(spec(tmp_path, SLEEP))
        stopped = await asyncio.wait_for(supervisor.stop("child"), 60)
        assert stopped.pid is None


async def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    async with supervising() as supervisor:
        supervisor.start(spec(tmp_path, SLEEP))
        with pytest.raises(NotFound, match="there are: child"):
            await supervisor.stop("ghost")


async def test_shutdown_keeps_the_order_and_starts_nothing_more(tmp_path: Path) -> None:
    order: list[str] = []
    async with supervising() as supervisor:
        names = [name for group in reversed(SHUTDOWN_ORDER) for name in group]
        children = [supervisor.start(spec(tmp_path, SLEEP, name, name)) for name in names]
        for child in children:
            await is_up(child)

        async def note_ends() -> None:
            while len(order) < len(names):
                change = supervisor.next_change
                order.extend(
                    c.spec.name
                    for c in children
                    if c.state is ProcessState.STOPPED and c.spec.name not in order
                )
                await change.wait()

        noting = asyncio.create_task(note_ends())
        closing = asyncio.create_task(supervisor.shutdown())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="shutting down"):
            supervisor.start(spec(tmp_path, SLEEP, "late"))
        await closing
        noting.cancel()
        await asyncio.wait([noting])
    assert [group for group in SHUTDOWN_ORDER if len(group) == 1] == [(n,) for n in order[:5]]


async def test_a_log_that_grew_too_large_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "LOG_BYTES_MAX", 10)
    async with supervising() as supervisor:
        child_spec = spec(tmp_path, SLEEP)
        child_spec.log_file.parent.mkdir()
        child_spec.log_file.write_text("an old and long log\n")
        child = supervisor.start(child_spec)
        await is_up(child)
        assert "old" not in log_of(child)
        assert "old" in child_spec.log_file.with_suffix(".log.1").read_text()


async def test_a_program_that_is_not_there_is_said_in_its_log(tmp_path: Path) -> None:
    missing = ProcessSpec("x", "gateway", ("/no/such/program",), {}, tmp_path / "x.log")
    async with supervising() as supervisor:
        child = supervisor.start(missing)
        await until(lambda: "No such file" in log_of(child), what="the reason in the log")
        await until(lambda: child.failures >= 1, what="the failure to be seen")


def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from deepflow.local.process import ProcessSpec
from deepflow.local.supervisor import Supervisor

async def main():
    supervisor = Supervisor()
    for name in ("a", "b"):
        command = (sys.executable, "-c", {SLEEP!r})
        log_file = Path({str(tmp_path)!r}) / name
        supervisor.start(ProcessSpec(name, "gateway", command, dict(os.environ), log_file))
    while not all(child.pid for child in supervisor.all()):
        await asyncio.sleep(0.01)
    print(*(child.pid for child in supervisor.all()), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        children = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
        assert len(children) == 2
        supervisor.kill()
        supervisor.wait()
    deadline = time.monotonic() + 60
    while not all(is_gone(child) for child in children):
        assert time.monotonic() < deadline, f"left behind: {children}"
        os.sched_yield()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
