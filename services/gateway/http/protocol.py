"""Uvicorn's HTTP/1.1 protocol with the bounds that it lacks."""

from asyncio import Transport
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepflow.errors import (
    DeepFlowError,
    InvalidRequest,
    TooLarge,
    Unavailable,
    openai_error,
)
from services.gateway.config import GatewayConfig
from services.gateway.http.exchange import ABORT, PUSH, encode

# What a connection that was opened just before the gateway drains may take to ask.
FIRST_REQUEST_SECONDS = 1.0


def bounded_protocol(settings: GatewayConfig) -> type[HttpToolsProtocol]:
    """The protocol class for one listener."""
    return type("GatewayProtocol", (_BoundedProtocol,), {"settings": settings})


class _BoundedProtocol(HttpToolsProtocol):
    """Head size, time to send a request and number of connections are bounded."""

    settings: GatewayConfig

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._head_bytes = 0
        self._is_in_head = True
        self._reading: Any = None
        self._is_last = False  # hang up after the next answer

    def end_after_answer(self) -> None:
        """Answer what was asked, or is just being asked, and hang up."""
        self._is_last = True
        if self.cycle is None:  # it has only just connected: a request is on its way
            self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_unless_asked)
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _close_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > self.settings.connections_max:
            self._refuse(b"503 Service Unavailable", _TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # A head that is complete has cleared the count; only what is unfinished can be too long.
        if self._is_in_head and self._head_bytes > self.settings.head_bytes_max:
            self._refuse(b"431 Request Header Fields Too Large", _HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {
            PUSH: self.push,  # type: ignore[dict-item]
            ABORT: self.transport.abort,  # type: ignore[dict-item]
        }
        if self._reading is None:
            self._expect_request()

    def on_headers_complete(self) -> None:
        # Also a head that came in one piece; what raises here ends the parsing.
        if self._head_size() > self.settings.head_bytes_max:
            self._refuse(b"431 Request Header Fields Too Large", _HEAD_TOO_LARGE)
            raise httptools.HttpParserError("the head is too large")
        self._is_in_head = False
        self._head_bytes = 0
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._request_arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", _MALFORMED)

    def push(self, body: bytes) -> bool:
        """Write one piece of a chunked answer that has begun; False while the client lags behind.

        What `send` does for a piece, without a coroutine: this runs once per token.
        """
        if self.flow.write_paused:
            return False
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _expect_request(self) -> None:
        self._reading = self.loop.call_later(
            self.settings.request_read_seconds_max, self._request_is_late
        )

    def _request_arrived(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _request_is_late(self) -> None:
        self._reading = None
        self.transport.abort()

    def _refuse(self, status: bytes, error: DeepFlowError) -> None:
        """Answer below ASGI, and hang up."""
        if self.transport.is_closing():
            return
        body = encode(openai_error(error))
        retry = b"retry-after: 1\r\n" if isinstance(error, Unavailable) else b""
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"%sconnection: close\r\n\r\n%s" % (status, len(body), retry, body)
        )
        self.transport.close()


_TOO_MANY = Unavailable("too many connections; try again in a moment", reason="overloaded")
_HEAD_TOO_LARGE = TooLarge("the request line and headers are too long", reason="head_too_large")
_MALFORMED = InvalidRequest("this is not an HTTP/1.1 request", reason="malformed_http")
