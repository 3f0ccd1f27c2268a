"""Binds the port and serves the application in the running loop."""

import asyncio
import errno
import socket
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from services.gateway.config import GatewayConfig
from services.gateway.http.protocol import bounded_protocol

BACKLOG = 2048
DATE_SECONDS = 1.0
LEFT_POLL_SECONDS = 0.02


class Listener:
    """Uvicorn's protocol without its server, which would own the signals and poll."""

    def __init__(self, settings: GatewayConfig, application: Any) -> None:
        self.port = 0
        self._settings = settings
        self._config = uvicorn.Config(
            application,
            http=bounded_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=int(settings.keep_alive_seconds),
        )
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._bound: socket.socket | None = None
        self._dating: asyncio.TimerHandle | None = None

    def take_port(self) -> socket.socket:
        """The port is ours; who connects is refused until `start`."""
        self._bound = bind(self._settings.host, self._settings.port)
        self.port = self._bound.getsockname()[1]
        return self._bound

    async def start(self) -> None:
        bound = self._bound or self.take_port()
        self._config.load()
        self._set_date()
        self._server = await asyncio.get_running_loop().create_server(
            self._make_protocol, sock=bound, backlog=BACKLOG
        )

    def refuse(self) -> None:
        """Whoever comes now is refused and finds another gateway; who is here is answered."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.end_after_answer()  # type: ignore[union-attr]

    async def wait_until_left(self) -> None:
        """After `refuse`: until everybody has an answer and is gone."""
        while True:
            if not self._state.connections:
                return
            await asyncio.sleep(LEFT_POLL_SECONDS)

    async def close(self) -> None:
        """Hang up on everybody; call it when answers have ended."""
        if self._dating is not None:
            self._dating.cancel()
        if self._server is None:
            if self._bound is not None:
                self._bound.close()
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _make_protocol(self) -> asyncio.Protocol:
        return self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state={}
        )

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._dating = asyncio.get_running_loop().call_later(DATE_SECONDS, self._set_date)


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Inherited by every connection: a token must not wait for the one before to be confirmed.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, _explain(error, host, port)) from error
    return bound


def _explain(error: OSError, host: str, port: int) -> str:
    reason = (
        "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    )
    return (
        f"port {port} on {host} {reason}; choose another one with DEEPFLOW_GATEWAY_PORT=PORT"
        " or deepflow up --port PORT"
    )
