"""Binds the port and serves the application in the running loop."""

import asyncio
import contextlib
import errno
import socket
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from deepflow.background import end
from services.gateway.config import GatewayConfig
from services.gateway.http.https import HttpsServer, public_certificate
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
        self._welcomes: set[asyncio.Task[None]] = set()
        self._dating: asyncio.TimerHandle | None = None
        self._is_serving = False
        self._is_refusing = False
        self._https = self._make_https()

    def take_port(self) -> socket.socket:
        """The port is ours; who connects is refused until `start`."""
        self._bound = bind(self._settings.host, self._settings.port)
        self.port = self._bound.getsockname()[1]
        return self._bound

    async def start(self) -> None:
        bound = self._bound or self.take_port()
        self._config.load()
        self._set_date()
        await self._serve(bound)

    async def _serve(self, bound: socket.socket) -> None:
        self._is_refusing = False
        if self._https is not None:
            self._https.serve(bound, BACKLOG)
        else:
            self._server = await asyncio.get_running_loop().create_server(
                self._make_protocol, sock=bound, backlog=BACKLOG
            )
        self._is_serving = True

    def refuse(self) -> None:
        """Whoever comes now is refused and finds another gateway; who is here is answered."""
        self._is_refusing = True
        if self._is_serving:
            self._let_in_who_waits()
            self._stop_accepting()
        for connection in list(self._state.connections):
            connection.end_after_answer()  # type: ignore[union-attr]

    def _let_in_who_waits(self) -> None:
        """The kernel has said yes to them already; closing the port would hang up on them."""
        bound, self._bound = self._bound, None
        if bound is None:
            return
        with contextlib.suppress(OSError):  # nobody waits any more
            for _ in range(BACKLOG):
                connection, _ = bound.accept()
                connection.setblocking(False)
                if self._https is not None:
                    self._https.take(connection)
                    continue
                welcome = asyncio.create_task(self._welcome(connection))
                self._welcomes.add(welcome)
                welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.connect_accepted_socket(self._make_protocol, connection)
        protocol.end_after_answer()  # type: ignore[attr-defined]

    async def resume(self) -> None:
        """After `refuse`: on the same port. Raises OSError where somebody else took it."""
        self._bound = bind(self._settings.host, self.port)
        await self._serve(self._bound)

    async def wait_until_left(self) -> None:
        """After `refuse`: until everybody has an answer and is gone."""
        while True:
            handshakes = self._https.handshakes if self._https is not None else 0
            if not self._state.connections and not self._welcomes and not handshakes:
                return
            await asyncio.sleep(LEFT_POLL_SECONDS)

    async def close(self) -> None:
        """Hang up on everybody; call it when answers have ended."""
        if self._dating is not None:
            self._dating.cancel()
        if self._https is not None:
            await self._https.end()
        if not self._is_serving:
            if self._bound is not None:
                self._bound.close()
            return
        self._stop_accepting()
        await end(*self._welcomes)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _make_protocol(self) -> asyncio.Protocol:
        return self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state={}
        )

    def _stop_accepting(self) -> None:
        if self._https is not None:
            self._https.close()
        if self._server is not None:
            self._server.close()

    def _make_https(self) -> HttpsServer | None:
        certificate = public_certificate(self._settings)
        if certificate is None:
            return None
        return HttpsServer(
            certificate,
            self._settings.handshake_seconds_max,
            self._has_room,
            self._make_protocol,
            self._connected,
        )

    def _has_room(self) -> bool:
        handshakes = self._https.handshakes if self._https is not None else 0
        return len(self._state.connections) + handshakes < self._settings.connections_max

    def _connected(self, protocol: asyncio.Protocol) -> None:
        """Its handshake is through."""
        if self._is_refusing:  # it came before, and is answered
            protocol.end_after_answer()  # type: ignore[attr-defined]

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
