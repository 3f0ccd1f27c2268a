"""Real servers for tests: each on a free port, ready when handed out, gone when left.

with redis_server() as redis: …                      # redis.url, redis.password, redis.process
async with nats_server(user="u", password="p") as nats: …
async with redis_server(tmp_path, "secret") as redis: await redis.kill(); await redis.start()
"""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from deepflow.lifecycle import bound_to_parent
from deepflow.local import binaries

READY_SECONDS = 60.0  # who needs so long is not slow, but gone
POLL_SECONDS = 0.01
# Below those that the kernel gives to whoever asks for any.
PORTS = range(10_000, 32_000)
# Each process begins elsewhere and gives none twice, so that nobody else takes one in between.
_next_ports = (PORTS[(97 * os.getpid() + it) % len(PORTS)] for it in itertools.count())


@dataclass
class ServerProcess:
    """One server that a test may kill and start again on the same port; `with` or `async with`."""

    command: list[str]
    port: int
    url: str
    user: str = ""
    password: str = ""
    process: subprocess.Popen[bytes] | None = None
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._spawn()
        await until(lambda: accepts(self.port), what=f"{self.command[0]} on port {self.port}")

    async def kill(self) -> None:
        self.kill_now()

    def start_now(self) -> None:
        """`start` for a test without a loop."""
        self._spawn()
        deadline = time.monotonic() + READY_SECONDS
        while not accepts(self.port):
            assert time.monotonic() < deadline, f"{self.command[0]} does not listen"
            time.sleep(POLL_SECONDS)

    def kill_now(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def _spawn(self) -> None:
        self.process = subprocess.Popen(
            bound_to_parent(self.command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def close(self) -> None:
        self.kill_now()
        self.undo.close()

    def __enter__(self) -> Self:
        try:
            self.start_now()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def free_port() -> int:
    return next(port for port in _next_ports if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def nats_server(port: int = 0, *, user: str = "", password: str = "") -> ServerProcess:
    """Without a user it lets everybody in."""
    port = port or free_port()
    command = [str(binaries.nats_server()), "-a", "127.0.0.1", "-p", str(port)]
    if user:
        command += ["--user", user, "--pass", password]
    return ServerProcess(command, port, f"nats://127.0.0.1:{port}", user, password)


def redis_server(folder: Path | None = None, password: str = "") -> ServerProcess:
    """Keeps its append-only file in `folder`, so that it remembers over a kill."""
    port = free_port()
    undo = contextlib.ExitStack()
    if folder is None:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "requirepass": password,
    }
    command = [str(binaries.redis_server())]
    for name, value in settings.items():
        command += [f"--{name}", value]
    url = f"redis://127.0.0.1:{port}/0"
    return ServerProcess(command, port, url, password=password, undo=undo)


async def until(
    ready: Callable[[], bool | Awaitable[bool]], *, what: str, seconds: float = READY_SECONDS
) -> None:
    """Wait for a condition; a wait that is too long fails and names what it was for."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = ready()
        if answer if isinstance(answer, bool) else await answer:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        await asyncio.sleep(POLL_SECONDS)


def accepts(port: int) -> bool:
    """Whether somebody listens there; answers at once, because it asks the loopback only."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def listens(port: int) -> bool:
    """Whether this process does; looks only, and does not connect: asyncio loses (and
    warns of) a connection that it takes while its listener closes."""
    own = psutil.Process().net_connections("tcp")
    return any(it.status == psutil.CONN_LISTEN and it.laddr.port == port for it in own)
