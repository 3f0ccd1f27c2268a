"""TCP ports of this host: free ones, and who is in the way of a wanted one."""

import errno
import socket

from deepflow.local.errors import StackError


def keep_or_choose(wanted: list[int], host: str = "127.0.0.1") -> list[int]:
    """Each wanted port that is free, and a free one in place of each that is not (or is 0)."""
    probes: list[socket.socket] = []
    try:
        # All are held until all are chosen, so that no port is chosen twice.
        for port in wanted:
            probes.append(_try_bind(host, port) or _bind(host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def require_free(host: str, ports: list[int]) -> None:
    """Raises StackError that names the first busy port and how to choose another."""
    for port in ports:
        try:
            _bind(host, port).close()
        except OSError as error:
            raise StackError(_why(error, host, port)) from error


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another with --port, such as --port 8080"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights: choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror}; choose another with --host or --port"


def _try_bind(host: str, port: int) -> socket.socket | None:
    try:
        return _bind(host, port)
    except OSError:
        return None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    # As servers do: a port whose old connections linger in TIME_WAIT is free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError:
        probe.close()
        raise
    return probe
