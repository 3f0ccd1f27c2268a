"""/health, /ready and /metrics of a service that speaks no HTTP otherwise.

It listens before anything heavy is loaded, so that an orchestrator can tell slow from dead.
"""

import asyncio
import json

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from deepflow.lifecycle import Lifecycle

REQUEST_SECONDS_MAX = 5.0
JSON = "application/json"


class HealthServer:
    """A few routes of HTTP/1.1, one request a connection."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._answer, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = route(
                    head.split(b"\r\n", 1)[0].decode("latin-1"), self._lifecycle
                )
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
                    "connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a probe that went away or speaks no HTTP: nobody to tell
        finally:
            writer.close()


def route(request_line: str, lifecycle: Lifecycle) -> tuple[str, str, bytes]:
    """(status, content type, body) for one request line."""
    method, _, rest = request_line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if method != "GET":
        return "405 Method Not Allowed", JSON, b'{"error":"only GET"}'
    if path == "/health":
        return "200 OK", JSON, _state(lifecycle)
    if path == "/ready":
        return (
            ("200 OK" if lifecycle.is_ready else "503 Service Unavailable"),
            JSON,
            _state(lifecycle),
        )
    if path == "/metrics":
        return "200 OK", CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
    return "404 Not Found", JSON, b'{"error":"routes: /health /ready /metrics"}'


def _state(lifecycle: Lifecycle) -> bytes:
    return json.dumps(
        {
            "state": lifecycle.word,
            "detail": lifecycle.detail,
            "since_unix_ms": lifecycle.since_unix_ms,
            "step_seconds": lifecycle.step_seconds,
        }
    ).encode()
