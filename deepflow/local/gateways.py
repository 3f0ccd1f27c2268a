"""The gateways of a stack: each has a port of its own, for as long as it is there."""

from collections.abc import Callable, Collection

from deepflow.local.ports import keep_or_choose
from deepflow.local.process import ProcessSpec, ProcessState
from deepflow.local.stack import Stack
from deepflow.local.supervisor import Supervisor

STEM = "gateway"
PORT_MAX = 65535
_GOING = (ProcessState.STOPPING, ProcessState.STOPPED)


def gateway_name(index: int) -> str:
    return f"{STEM}-{index}"


class Gateways:
    def __init__(self, stack: Stack, supervisor: Supervisor) -> None:
        self._stack = stack
        self._supervisor = supervisor
        self._ports: dict[str, int] = {}

    def spec(self, name: str) -> ProcessSpec:
        """How it is started. One that is there keeps its port, also over its restarts."""
        present = {process.spec.name for process in self._supervisor.all()}
        self._ports = {known: port for known, port in self._ports.items() if known in present}
        if name not in self._ports:
            self._ports[name] = self._choose(name)
        return self._stack.gateway(name, self._ports[name])

    @property
    def urls(self) -> dict[str, str]:
        """Of those that stay, by name, the first one first."""
        options = self._stack.options
        staying = [p.spec.name for p in self._supervisor.all() if p.state not in _GOING]
        names = sorted((it for it in staying if it in self._ports), key=_number)
        return {name: options.url(self._ports[name]) for name in names}

    def _choose(self, name: str) -> int:
        options = self._stack.options
        return choose_port(
            options.port + max(0, _number(name)),
            {*self._ports.values(), *self._stack.ports.all},
            lambda wanted: keep_or_choose([wanted], options.host)[0],
        )


def choose_port(wanted: int, taken: Collection[int], keep: Callable[[int], int]) -> int:
    """The wanted one where it is free, another one elsewhere. `keep` looks at this host.

    A port may be promised to a process that does not listen yet: `taken` says so.
    """
    port = keep(wanted if wanted <= PORT_MAX and wanted not in taken else 0)
    while port in taken:
        port = keep(0)
    return port


def _number(name: str) -> int:
    """gateway-2: 2; names of another form come first."""
    _, _, number = name.rpartition("-")
    return int(number) if number.isdecimal() else -1
