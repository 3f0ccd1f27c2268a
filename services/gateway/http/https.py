"""HTTPS of the public port: its certificate, renewed while it serves, and its handshakes."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from deepflow.background import end
from deepflow.config import ConfigError
from deepflow.tls import BadCertificate, CertificateFiles
from services.gateway.config import GatewayConfig

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
SHUTDOWN_SECONDS = 2.0
CERTIFICATE = "DEEPFLOW_GATEWAY_HTTPS_CERTIFICATE"
KEY = "DEEPFLOW_GATEWAY_HTTPS_KEY"
ACCEPTED_AT_ONCE_MAX = 64
ACCEPT_AGAIN_SECONDS = 1.0


class PublicCertificate:
    """The one that new connections are shown."""

    def __init__(self, files: CertificateFiles) -> None:
        """Raises BadCertificate."""
        self._files = files
        self._stamp = _stamp(files)
        self.context = files.server_context()

    def renew(self) -> None:
        """Takes the files as they are now, where that is possible; else the former stays."""
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.context = self._files.server_context()
        except BadCertificate as error:
            log.error("the former certificate stays: %s", error)
        else:
            log.info("%s was renewed", self._files.certificate)

    async def follow(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.renew()


def public_certificate(settings: GatewayConfig) -> PublicCertificate | None:
    """None for plain HTTP. Raises ConfigError that names the setting."""
    given = {CERTIFICATE: settings.https_certificate, KEY: settings.https_key}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigError(f"{missing[0]} is not set: {CERTIFICATE} and {KEY} belong together")
    try:
        return PublicCertificate(CertificateFiles(*(Path(it) for it in given.values())))
    except BadCertificate as error:
        raise ConfigError(f"{CERTIFICATE}, {KEY}: {error}") from error


class HttpsServer:
    """What asyncio's server is for plain HTTP, for connections that begin with a handshake.

    Its own accepting, so that a connection counts from its first moment on, and so that each is
    shown the certificate of that moment.
    """

    def __init__(
        self,
        certificate: PublicCertificate,
        seconds_max: float,
        has_room: Callable[[], bool],
        new_protocol: Callable[[], asyncio.Protocol],
        on_connected: Callable[[asyncio.Protocol], None],
    ) -> None:
        self._certificate = certificate
        self._seconds_max = seconds_max
        self._has_room = has_room
        self._new_protocol = new_protocol
        self._on_connected = on_connected
        self._bound: socket.socket | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    @property
    def handshakes(self) -> int:
        """Connections that are none of the protocol yet."""
        return len(self._handshakes)

    def serve(self, bound: socket.socket, backlog: int) -> None:
        bound.listen(backlog)
        self._bound = bound
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._certificate.follow())
        self._listen()

    def close(self) -> None:
        """Nobody new; handshakes go on."""
        if self._bound is not None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._bound.close()
            self._bound = None

    async def end(self) -> None:
        """Also whoever is in its handshake."""
        self.close()
        await end(self._renewing, *self._handshakes)

    def take(self, connection: socket.socket) -> None:
        """One that was accepted."""
        if not self._has_room():
            connection.close()  # nothing that it would understand can be said yet
            return
        task = asyncio.create_task(self._shake_hands(connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _listen(self) -> None:
        if self._bound is not None:
            asyncio.get_running_loop().add_reader(self._bound, self._accept, self._bound)

    def _accept(self, bound: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                connection, _ = bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left: those that end give some back
                log.error("cannot accept a connection: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(bound)
                loop.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
                return
            connection.setblocking(False)
            self.take(connection)

    async def _shake_hands(self, connection: socket.socket) -> None:
        # Ours: what uvloop answers is the layer between.
        protocol = self._new_protocol()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._seconds_max,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except OSError as error:  # a stranger's, or a client's that trusts somebody else
            log.debug("a handshake failed: %s", error)
            return
        self._on_connected(protocol)


def _stamp(files: CertificateFiles) -> object:
    try:
        return files.stamp
    except OSError as error:
        return str(error)
