"""Everything that listens in the process tree of a stack, as the kernel says."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.stack import Stack

LOOPBACKS = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
# A Unix socket that somebody may connect to, in /proc/net/unix.
_ACCEPTS = 0x10000
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Listener:
    """`service` and `role` say what a stack is known to have there; `unknown` where nothing is."""

    service: str
    role: str
    protocol: str
    address: str  # of TCP and UDP
    port: int
    path: str = ""  # of a Unix socket

    @property
    def line(self) -> str:
        return f"listen {self.service} {self.protocol} {self.role}"


def listeners(stack: Stack) -> list[Listener]:
    services = _services(stack)
    roles = _roles(stack)
    control = str(stack.data_dir / "supervisor.sock")
    found: list[Listener] = []
    for process in stack.family():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # it ended just now
            service = _service_of(process, services)
            found += _ports(process, service, roles)
            for path in _unix_sockets(process):
                role = "control" if path == control else UNKNOWN
                found.append(Listener(service, role, "unix", "", 0, path))
    return found


def _ports(
    process: psutil.Process, service: str, roles: dict[tuple[str, int], str]
) -> Iterator[Listener]:
    for connection in process.net_connections("inet"):
        is_udp = connection.status == psutil.CONN_NONE
        if not connection.laddr or not (is_udp or connection.status == psutil.CONN_LISTEN):
            continue
        port = connection.laddr.port
        role = roles.get((service, port), f"{UNKNOWN} port {port}")
        protocol = "udp" if is_udp else "tcp"
        yield Listener(service, role, protocol, connection.laddr.ip, port)


def _services(stack: Stack) -> dict[int, str]:
    return {int(row["pid"]): str(row["service"]) for row in stack.processes()}


def _service_of(process: psutil.Process, services: dict[int, str]) -> str:
    """A process that is not listed belongs to the nearest one above it that is."""
    for it in (process, *process.parents()):
        if it.pid in services:
            return services[it.pid]
    return UNKNOWN


def _roles(stack: Stack) -> dict[tuple[str, int], str]:
    roles: dict[tuple[str, int], str] = {}
    description = stack.status()
    for row in description["processes"]:
        if row.get("health_address"):
            roles[row["service"], _port(row["address"])] = "grpc"
            roles[row["service"], _port(row["health_address"])] = "health"
    for url in description["gateways"]:
        roles["gateway", _port(url)] = "http"
    for name in ("nats", "redis"):
        roles[name, port_of(stack, name)] = name
    return roles


def port_of(stack: Stack, server: str) -> int:
    """Of NATS or Redis: as its own configuration says."""
    for line in (stack.data_dir / server / f"{server}.conf").read_text().splitlines():
        name, *rest = line.replace(":", " ").split()
        if name == "port":
            return int(rest[0])
    raise AssertionError(f"{server} has no port")


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _unix_sockets(process: psutil.Process) -> Iterator[str]:
    own = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            own.add(target[len("socket:[") : -1])
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split()
        if inode in own and int(flags, 16) & _ACCEPTS:
            yield path[0] if path else "(no name)"
