"""Owns every process of this host: starts, restarts and stops them, in the right order."""

import asyncio
import logging

from deepflow.errors import Conflict, NotFound, Unavailable
from deepflow.local.messages import ProcessRow
from deepflow.local.process import ManagedProcess, ProcessSpec, ProcessState
from deepflow.local.restart_policy import RestartPolicy

log = logging.getLogger(__name__)

PROCESSES_MAX = 256

# Whoever brings in work stops before whoever does it; what all stand on stops last.
SHUTDOWN_ORDER: tuple[tuple[str, ...], ...] = (
    ("gateway",),
    ("job_executor",),
    ("task_executor",),
    ("cluster_manager",),
    ("kv_store",),
    ("nats", "redis"),
)


class Supervisor:
    """Every process by its name. Children die with this process, however it dies."""

    def __init__(self, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._processes: dict[str, ManagedProcess] = {}
        self._term = 0
        self._is_closing = False
        self._changed = asyncio.Event()

    def check_term(self, term: int | None) -> None:
        """A leader that was replaced and has not noticed decides nothing here any more."""
        if term is None:
            return
        if term < self._term:
            raise Conflict(
                f"term {term} is over: the cluster manager of term {self._term} leads",
                reason="stale_term",
            )
        self._term = term

    def start(self, spec: ProcessSpec) -> ManagedProcess:
        """Idempotent by name."""
        if self._is_closing:
            raise Unavailable("the stack is shutting down: nothing new is started")
        present = self._processes.get(spec.name)
        if present is not None:
            return _same(present, spec)
        if len(self._processes) >= PROCESSES_MAX:
            raise Unavailable(f"{PROCESSES_MAX} processes run already: stop one first")
        process = ManagedProcess(spec, self._policy, self._notify)
        self._processes[spec.name] = process
        process.start()
        return process

    async def stop(self, name: str, grace_seconds: float | None = None) -> ManagedProcess:
        """Ends the process and forgets it."""
        process = self.get(name)
        await process.stop(grace_seconds)
        if self._processes.get(name) is process:
            del self._processes[name]
            self._notify()
        return process

    async def shutdown(self) -> None:
        """Everything stops, group after group; nothing can be started any more."""
        self._is_closing = True
        known = {service for group in SHUTDOWN_ORDER for service in group}
        others = {p.spec.service for p in self._processes.values()} - known
        for group in (tuple(others), *SHUTDOWN_ORDER):
            names = [p.spec.name for p in self._processes.values() if p.spec.service in group]
            await asyncio.gather(*(self.stop(name) for name in names))

    def kill(self) -> None:
        """Everything ends now, without a word."""
        self._is_closing = True
        for process in self._processes.values():
            process.kill()

    def get(self, name: str) -> ManagedProcess:
        if name not in self._processes:
            known = ", ".join(sorted(self._processes)) or "none"
            raise NotFound(f"no process is called {name!r}; there are: {known}")
        return self._processes[name]

    def all(self) -> list[ManagedProcess]:
        return list(self._processes.values())

    def rows(self) -> list[ProcessRow]:
        return [row(process) for process in self._processes.values()]

    @property
    def next_change(self) -> asyncio.Event:
        """Set at the next change of any process. Take it before looking, then wait for it."""
        return self._changed

    def _notify(self) -> None:
        previous, self._changed = self._changed, asyncio.Event()
        previous.set()


def row(process: ManagedProcess) -> ProcessRow:
    return ProcessRow(
        name=process.spec.name,
        service=process.spec.service,
        pid=process.pid,
        state=process.state.value,
        since_unix_ms=process.since_unix_ms,
        restarts=process.restarts,
        exit_code=process.exit_code,
        log_file=str(process.spec.log_file),
    )


def _same(present: ManagedProcess, spec: ProcessSpec) -> ManagedProcess:
    if present.spec.service != spec.service:
        raise Conflict(f"{spec.name} is the name of a {present.spec.service}: choose another")
    if present.state in (ProcessState.STOPPING, ProcessState.STOPPED):
        raise Conflict(f"{spec.name} is being stopped: start it again once it is gone")
    return present
