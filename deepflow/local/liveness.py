"""Processes that exist and do nothing: asked how they are, and killed where they do not say.

A process that was stopped, or whose loop is stuck, ends by itself never; its restart is what the
supervisor is good at.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deepflow.local import http
from deepflow.local.process import ManagedProcess, ProcessState
from deepflow.local.supervisor import Supervisor

log = logging.getLogger(__name__)

# One late answer is a busy machine, or this process that slept itself.
MISSES_MAX = 3


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is remembered of one life of one process."""

    pid: int
    misses: int = 0

    def after(self, pid: int, *, has_answered: bool) -> "Pulse":
        """Another life begins anew; so does every answer."""
        if has_answered or pid != self.pid:
            return Pulse(pid, 0 if has_answered else 1)
        return Pulse(pid, self.misses + 1)

    @property
    def is_dead(self) -> bool:
        return self.misses >= MISSES_MAX


@dataclass(frozen=True, slots=True)
class HealthPort:
    """Where one life of a process answers; pid 0 = every life."""

    address: str
    pid: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}/health"


class LivenessProbe:
    """Asks /health of everybody once in `seconds`, and gives each as long to answer."""

    def __init__(
        self,
        supervisor: Supervisor,
        find_ports: Callable[[], Mapping[str, HealthPort]],
        seconds: float,
        certificate: Path | None = None,
    ) -> None:
        """`certificate` is what those show that answer over TLS."""
        self._certificate = certificate
        self._supervisor = supervisor
        self._find_ports = find_ports
        self._seconds = seconds
        self._pulses: dict[str, Pulse] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._look_at_all()
            except Exception:  # whatever one look ended in, the next one is as needed
                log.exception("the processes could not be asked how they are")

    async def _look_at_all(self) -> None:
        ports = self._find_ports()
        running = [p for p in self._supervisor.all() if p.state is ProcessState.RUNNING]
        asked = [(it, ports[it.spec.name]) for it in running if it.spec.name in ports]
        await asyncio.gather(*(self._look(it, port) for it, port in asked))
        names = {it.spec.name for it in running}
        self._pulses = {k: pulse for k, pulse in self._pulses.items() if k in names}

    async def _look(self, process: ManagedProcess, port: HealthPort) -> None:
        pid, name = process.pid, process.spec.name
        if pid is None or port.pid not in (0, pid):
            return  # this life has not said yet where it answers
        has_answered = await self._answers(port.url)
        if process.pid != pid or process.state is not ProcessState.RUNNING:
            return
        pulse = self._pulses.get(name, Pulse(pid)).after(pid, has_answered=has_answered)
        self._pulses[name] = pulse
        if pulse.is_dead:
            log.error("%s did not answer %d times: it is killed", name, MISSES_MAX)
            process.end_life()

    async def _answers(self, url: str) -> bool:
        try:
            await http.get(url, self._seconds, certificate=self._certificate)
        except http.NoAnswer as error:
            # A port that refuses belongs to a process that starts, drains or ends: no hang.
            return not isinstance(error.__cause__, TimeoutError)
        return True
