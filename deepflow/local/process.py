"""One process of the stack, over all its lives: spawn, wait, back off, spawn again, stop."""

import asyncio
import contextlib
import enum
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepflow import clock
from deepflow.lifecycle import bound_to_parent
from deepflow.local.restart_policy import RestartPolicy, RestartState

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 16 * 1024 * 1024
# More than a service's own drain_seconds, so that it is the service that gives up first.
GRACE_SECONDS = 25.0
EXIT_CANNOT_SPAWN = 127


class ProcessState(enum.StrEnum):
    RUNNING = "running"
    # Ended by itself; the next start waits for the back-off.
    RESTARTING = "restarting"
    # Asked to end, still there.
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How one process is started, each time."""

    name: str
    service: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log_file: Path
    grace_seconds: float = GRACE_SECONDS


class ManagedProcess:
    """Keeps one process alive until it is stopped; its state is for anybody to read."""

    def __init__(
        self, spec: ProcessSpec, policy: RestartPolicy, on_change: Callable[[], None]
    ) -> None:
        self.spec = spec  # a new one counts from the next start on
        self.state = ProcessState.RESTARTING
        self.since_unix_ms = clock.unix_ms()
        self.restarts = 0
        self.exit_code: int | None = None
        self.pid: int | None = None
        self._policy = policy
        self._memory = RestartState()
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def failures(self) -> int:
        """Lives in a row that were short."""
        return self._memory.failures

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep_running(), name=self.spec.name)

    async def stop(self, grace_seconds: float | None = None) -> None:
        """SIGTERM; after the grace SIGKILL, also for its children. Returns when it is gone."""
        if self._keeper is None:
            return
        if not self._stopping.is_set():
            self._stopping.set()
            self._signal(signal.SIGTERM)
            if self.state is ProcessState.RUNNING:
                self._become(ProcessState.STOPPING)
        grace = self.spec.grace_seconds if grace_seconds is None else grace_seconds
        done, _ = await asyncio.wait([self._keeper], timeout=grace)
        if not done:
            log.warning("%s did not end within %.1f s of SIGTERM", self.spec.name, grace)
            self.kill()
        await asyncio.wait([self._keeper])

    def kill(self) -> None:
        """SIGKILL, now, for it and for what it started; it does not come back."""
        self._stopping.set()
        self.end_life()

    def end_life(self) -> None:
        """SIGKILL for it and for what it started; it comes back as after any other end."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _keep_running(self) -> None:
        while not self._stopping.is_set():
            code = await self._live()
            self.pid, self.exit_code = None, code
            if self._stopping.is_set():
                log.info("%s ended with code %s", self.spec.name, code)
                break
            self._memory, delay = self._policy.ended(self._memory, clock.monotonic())
            log.warning("%s ended with code %s; next start in %.1f s", self.spec.name, code, delay)
            self._become(ProcessState.RESTARTING)
            await self._pause(delay)
            self.restarts += 1
        self._become(ProcessState.STOPPED)

    async def _live(self) -> int:
        """One life; answers the exit code (minus the signal's number for a killed process)."""
        self._memory = self._policy.started(self._memory, clock.monotonic())
        with open_log(self.spec.log_file) as output:
            try:
                process = await self._spawn(output)
            except OSError as error:
                output.write(f"cannot start {self.spec.name}: {error}\n".encode())
                return EXIT_CANNOT_SPAWN
        self.pid = process.pid
        self._become(ProcessState.RUNNING)
        log.info("%s runs as process %d", self.spec.name, process.pid)
        if self._stopping.is_set():  # asked while it was being born
            self._signal(signal.SIGTERM)
        return await process.wait()

    async def _spawn(self, output: BinaryIO) -> asyncio.subprocess.Process:
        # A session of its own: the Ctrl-C of a terminal reaches the supervisor alone.
        return await asyncio.create_subprocess_exec(
            *bound_to_parent(list(self.spec.command)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(self.spec.environment),
            start_new_session=True,
        )

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _become(self, state: ProcessState) -> None:
        self.state, self.since_unix_ms = state, clock.unix_ms()
        self._on_change()


def open_log(path: Path) -> BinaryIO:
    """Append; what has grown too large is set aside once, replacing what was set aside before."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab", buffering=0)
