"""The supervisor's face: a Unix socket that only its owner may open, JSON lines both ways."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deepflow.errors import DeepFlowError
from deepflow.local import messages
from deepflow.local.errors import StackError
from deepflow.local.messages import LINE_BYTES_MAX
from deepflow.local.paths import check_socket_path
from deepflow.local.process import ProcessSpec
from deepflow.local.supervisor import Supervisor, row

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 128


class Launcher(Protocol):
    def __call__(self, service: str, name: str, settings: dict[str, Any]) -> ProcessSpec:
        """How a process of one of the five services is started in this stack."""


@dataclass(frozen=True, slots=True)
class Face:
    """All that the socket can ask of the process behind it."""

    supervisor: Supervisor
    launch: Launcher
    describe: Callable[[], dict[str, Any]]
    cluster: Callable[[], Awaitable[dict[str, Any]]]
    request_shutdown: Callable[[], None]


class ControlSocket:
    def __init__(self, path: Path, face: Face) -> None:
        self._path = path
        self._face = face
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises StackError for a path that no socket can have."""
        check_socket_path(self._path)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=_bind(self._path), limit=LINE_BYTES_MAX
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                writer.write(messages.encode_failure("too many connections to the supervisor"))
            else:
                await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the client left, or the supervisor is closing
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # how a StreamReader says that a line is over its limit
                writer.write(messages.encode_failure(f"a line is over {LINE_BYTES_MAX} bytes"))
                return
            if not line:
                return
            await self._answer(line, writer)
            await writer.drain()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            request = messages.decode(line)
            if isinstance(request, messages.Watch):
                await self._watch(writer)
            else:
                writer.write(messages.encode_success(**await self._do(request)))
        except DeepFlowError as error:
            writer.write(messages.encode_failure(error.message))

    async def _do(self, request: messages.Request) -> dict[str, Any]:
        face = self._face
        match request:
            case messages.List():
                return {"processes": face.supervisor.rows()}
            case messages.Start():
                face.supervisor.check_term(request.term)
                spec = face.launch(request.service, request.name, request.settings)
                return {"process": row(face.supervisor.start(spec))}
            case messages.Stop():
                face.supervisor.check_term(request.term)
                process = await face.supervisor.stop(request.name, request.grace_seconds)
                return {"process": row(process)}
            case messages.Describe():
                return face.describe()
            case messages.Cluster():
                return await face.cluster()
            case messages.Shutdown():
                face.request_shutdown()
        return {}

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """The whole list now and after every change; changes a slow reader missed are merged."""
        while True:
            change = self._face.supervisor.next_change
            writer.write(messages.encode_success(processes=self._face.supervisor.rows()))
            await writer.drain()
            await change.wait()


def _bind(path: Path) -> socket.socket:
    """Bound with its final permissions, so that there is no moment when others could connect."""
    # The data folder is locked by us: a socket found here was left by a process that is gone.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StackError(f"cannot make the supervisor's socket {path}: {error.strerror}") from error
    finally:
        os.umask(previous)
    return listener
