"""One HTTP request and its answer, on raw ASGI."""

import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from deepflow.errors import Cancelled, DeepFlowError, InvalidRequest, TooLarge, openai_error
from deepflow.ids import new_id
from deepflow.v1 import types_pb2 as types
from services.gateway.auth.caller import ANYBODY, Caller

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
RETRY_AFTER_SECONDS = 1

# What our listener offers beyond ASGI.
PUSH = "deepflow.push"
ABORT = "deepflow.abort"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

encode = msgspec.json.Encoder().encode


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: str = scope["query_string"].decode("latin-1")
        self.receive = receive
        self.send = send
        self.status = 0
        # What the request log says beside the route and the status.
        self.notes: dict[str, Any] = {}
        # Whom the door let in, and what it says in every answer.
        self.caller: Caller = ANYBODY
        self.headers: list[tuple[bytes, bytes]] = []
        self._scope = scope
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = new_id("req")

    @property
    def is_started(self) -> bool:
        return self.status != 0

    def adopt_request_id(self) -> None:
        """The client's x-request-id, where it sent one."""
        given = self._headers.get(b"x-request-id")
        if given is None:
            return
        if not _REQUEST_ID.fullmatch(given):
            raise InvalidRequest(
                "the header x-request-id must be 1 to 128 letters, digits or ._:/+=-",
                param="x-request-id",
            )
        self.request_id = given.decode("ascii")

    def bearer(self) -> str:
        """The API key that came with the request; empty where none did."""
        scheme, _, key = self._headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return ""
        return key.strip().decode("latin-1")

    @property
    def site(self) -> tuple[str, str]:
        """What the headers Host and Origin say; empty where they are not there."""
        host, origin = self._headers.get(b"host", b""), self._headers.get(b"origin", b"")
        return host.decode("latin-1"), origin.decode("latin-1")

    def trace(self) -> types.TraceContext | None:
        """The caller's trace; one that is malformed is dropped, as W3C asks."""
        parent = self._headers.get(b"traceparent", b"").decode("latin-1")
        if not _TRACEPARENT.fullmatch(parent):
            return None
        state = self._headers.get(b"tracestate", b"").decode("ascii", "ignore")
        return types.TraceContext(traceparent=parent, tracestate=state)

    async def read_json_bytes(self, bytes_max: int) -> bytes:
        """The body; 400 where it is declared as something other than JSON."""
        kind = self._headers.get(b"content-type", JSON).split(b";", 1)[0].strip().lower()
        if kind != JSON:
            raise InvalidRequest(
                "the header content-type must be application/json",
                param="content-type",
                reason="unsupported_media_type",
            )
        declared = self._headers.get(b"content-length", b"0")
        if len(declared) > 18 or int(declared) > bytes_max:
            raise _too_large(bytes_max)
        return await self._read_body(bytes_max)

    async def _read_body(self, bytes_max: int) -> bytes:
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client went away before its request had arrived")
            body += message["body"]
            if len(body) > bytes_max:
                raise _too_large(bytes_max)
            if not message["more_body"]:
                return bytes(body)

    async def disconnection(self) -> None:
        """Return when the client has gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self, status: int, body: bytes, kind: bytes = JSON, *headers: tuple[bytes, bytes]
    ) -> None:
        await self._start(status, kind, (b"content-length", b"%d" % len(body)), *headers)
        await self.send({"type": "http.response.body", "body": body})

    async def respond_json(self, document: Any) -> None:
        await self.respond(200, encode(document))

    async def respond_error(
        self, error: DeepFlowError, *headers: tuple[bytes, bytes], status: int = 0
    ) -> None:
        status = status or error.http_status
        seconds = math.ceil(error.retry_after_seconds)
        if status in (429, 503):
            seconds = max(seconds, RETRY_AFTER_SECONDS)
        if status == 401:
            headers = (*headers, (b"www-authenticate", b"Bearer"))
        if seconds > 0:
            headers = (*headers, (b"retry-after", b"%d" % seconds))
        await self.respond(status, encode(openai_error(error)), JSON, *headers)

    async def start_events(self) -> None:
        # Proxies must pass every event on at once.
        await self._start(
            200, EVENTS, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")
        )

    def abort(self) -> None:
        """Cut the connection: there is no well-formed way to go on."""
        self._extension(ABORT)()

    @property
    def push(self) -> Callable[[bytes], bool]:
        """Sends a piece of the body at once, and answers False where `send` would have to wait."""
        push: Callable[[bytes], bool] = self._extension(PUSH)
        return push

    def _extension(self, name: str) -> Any:
        return self._scope["extensions"][name]

    async def _start(self, status: int, kind: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        request_id = (b"x-request-id", self.request_id.encode())
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), request_id, *self.headers, *headers],
            }
        )


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is larger than {bytes_max} bytes", reason="body_too_large")
