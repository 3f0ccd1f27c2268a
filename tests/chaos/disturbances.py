"""What is done to the control plane, in which order, and how."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.mesh import Mesh
from tests.stack import wait_until

KILL, TERMINATE, SUSPEND, HOLD_DOWN = "SIGKILL", "SIGTERM", "SIGSTOP", "hold down"
LEADER, STANDBY, MANAGERS = "leader", "standby", "both cluster managers"
VICTIMS = ("nats", "redis", "kv-store", LEADER, STANDBY)
SILENT = ("nats", "redis", "kv-store", MANAGERS)
SUSPENDED_SECONDS_MAX = 6.0
WELL_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.05

# Lets time pass for as long as it is told; tests may have something to do meanwhile.
Pass = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Disturbance:
    victim: str
    how: str
    seconds: float = 0.0  # for how long it is away

    def __str__(self) -> str:
        return f"{self.victim}: {self.how} {self.seconds:.1f}"


def disturbances(chance: random.Random, silence_seconds: float) -> Iterator[Disturbance]:
    """Without end: rounds of everything, each in another order; 0 seconds = no long silences."""
    while True:
        this_round = [Disturbance(it, how) for it in VICTIMS for how in (KILL, TERMINATE)]
        this_round += [
            Disturbance(it, SUSPEND, chance.uniform(0.5, SUSPENDED_SECONDS_MAX)) for it in VICTIMS
        ]
        if silence_seconds:
            this_round += [Disturbance(it, SUSPEND, silence_seconds) for it in SILENT]
            this_round += [Disturbance(it, HOLD_DOWN, silence_seconds) for it in SILENT]
        chance.shuffle(this_round)
        yield from this_round


class Disturber:
    """One disturbance at a time: the next one only once everybody is well again."""

    def __init__(self, mesh: Mesh, let_pass: Pass = time.sleep) -> None:
        self._mesh = mesh
        self._let_pass = let_pass
        self._began = time.monotonic()
        self.done: list[dict[str, Any]] = []

    def apply(self, disturbance: Disturbance) -> None:
        at = time.monotonic()
        names = self._names(disturbance.victim)
        match disturbance.how:
            case "SIGSTOP":
                self._suspend(names, disturbance.seconds)
            case "hold down":
                self._hold_down(names, disturbance.seconds)
            case how:
                self._end(names, signal.Signals[how])
        back = time.monotonic()
        wait_until(self._mesh.is_well, f"a well mesh after {disturbance}", WELL_SECONDS_MAX)
        self.done.append(
            asdict(disturbance)
            | {
                "names": names,
                "at_seconds": round(at - self._began, 1),
                "well_after_seconds": round(time.monotonic() - back, 1),
            }
        )

    def _names(self, victim: str) -> list[str]:
        if victim not in (LEADER, STANDBY, MANAGERS):
            return [victim]
        managers, leaders = self._mesh.names("cluster_manager"), self._mesh.leaders()
        if victim == MANAGERS:
            return managers
        return leaders if victim == LEADER else sorted(set(managers) - set(leaders))

    def _end(self, names: list[str], how: signal.Signals) -> None:
        for name in names:
            pid = self._mesh.pid(name)
            self._mesh.signal(pid, how)
            wait_until(lambda n=name, p=pid: self._mesh.pid(n) not in (0, p), f"{name} anew")  # type: ignore[misc]

    def _suspend(self, names: list[str], seconds: float) -> None:
        pids = [self._mesh.pid(name) for name in names]
        try:
            for pid in pids:
                self._mesh.signal(pid, signal.SIGSTOP)
            self._let_pass(seconds)
        finally:
            for pid in pids:
                self._mesh.signal(pid, signal.SIGCONT)

    def _hold_down(self, names: list[str], seconds: float) -> None:
        """Killed as often as the supervisor brings it back."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name in names:
                if pid := self._mesh.pid(name):
                    self._mesh.signal(pid, signal.SIGKILL)
            self._let_pass(LOOK_SECONDS)
