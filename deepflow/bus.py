"""NATS: events that any number of listeners may want, none of which an answer depends on.

The bus comes up by itself and comes back by itself. While it is away `publish` drops (events are
numbered or repeated, so that listeners see the gap) and nothing waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import nats
import nats.errors
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.aio.msg import Msg

from deepflow import background, process_metrics
from deepflow.config import ServiceConfig
from deepflow.subjects import is_by_its_speaker

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 0.25
PING_SECONDS = 5

M = TypeVar("M", bound=Message)


class Bus:
    """One connection of one process."""

    def __init__(self, config: ServiceConfig, name: str) -> None:
        self._config = config
        self._name = name
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None
        self._subscriptions: list[tuple[str, Callable[[Msg], Awaitable[None]]]] = []
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self.connected = asyncio.Event()

    def start(self) -> None:
        """Begin to connect in the background; subscriptions made before or after are kept."""
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        # An unreachable server raises; once connected the client reconnects by itself.
        while True:
            try:
                await self._client.connect(
                    self._config.nats_url,
                    user=self._config.nats_user or None,
                    password=self._config.nats_password or None,
                    name=self._name,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # it only sleeps on it
                    ping_interval=PING_SECONDS,
                    error_cb=self._log_error,
                    reconnected_cb=self._reconnected,
                    disconnected_cb=self._disconnected,
                )
                break
            except (TimeoutError, OSError, nats.errors.Error) as error:
                log.warning("NATS is not there yet: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        for subject, handler in self._subscriptions:
            await self._client.subscribe(subject, cb=handler)
        self.connected.set()
        process_metrics.NATS_CONNECTED.set(1)

    async def subscribe(
        self, subject: str, kind: type[M], handler: Callable[[M], Awaitable[None]]
    ) -> None:
        """Call `handler` with every message of `subject`.

        One that cannot be read, or that its speaker sent in another's name, is logged.
        """

        async def receive(message: Msg) -> None:
            try:
                event = kind.FromString(message.data)
            except DecodeError:
                log.error("unreadable message on %s", message.subject)
                return
            if not is_by_its_speaker(message.subject, event):
                log.error("a message on %s speaks for somebody else", message.subject)
                return
            await handler(event)

        self._subscriptions.append((subject, receive))
        if self.connected.is_set():
            await self._client.subscribe(subject, cb=receive)

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Called after every loss, when events may have been missed."""
        self._on_reconnect.append(callback)

    async def publish(self, subject: str, message: Message) -> bool:
        """Answers whether the message left; False while NATS is away."""
        if not self._client.is_connected:
            process_metrics.EVENTS_DROPPED.inc()
            return False
        try:
            await self._client.publish(subject, message.SerializeToString())
        except (OSError, nats.errors.Error) as error:
            log.warning("cannot publish on %s: %s", subject, error)
            return False
        return True

    async def close(self) -> None:
        if self._connecting is None:
            return  # never started: nothing to close
        await background.end(self._connecting)
        client = self._client
        if client.is_connecting or client.is_connected or client.is_reconnecting:
            await client.close()

    async def _reconnected(self) -> None:
        log.info("NATS is back")
        process_metrics.NATS_CONNECTED.set(1)
        for callback in self._on_reconnect:
            await callback()

    async def _disconnected(self) -> None:
        log.warning("NATS is away")
        process_metrics.NATS_CONNECTED.set(0)
        if self.connected.is_set():
            process_metrics.NATS_LOSSES.inc()

    async def _log_error(self, error: Exception) -> None:
        log.warning("NATS: %s", error or type(error).__name__)
