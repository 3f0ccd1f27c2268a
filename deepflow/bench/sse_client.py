"""A load client for streamed answers that costs as little as it can: it shares the cores.

It counts events and notes when the first content came; it parses no JSON.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from deepflow import clock

EVENT_END = b"\n\n"
BODY_END = b"0\r\n\r\n"
FIRST_CONTENT = re.compile(rb'"content":"[^"]')
ANSWER_SECONDS_MAX = 60.0


class BenchError(Exception):
    """The server answered something that cannot be measured."""


@dataclass(slots=True)
class Answer:
    """One streamed answer as the client saw it."""

    events: int = 0
    first_content_seconds: float = 0.0
    total_seconds: float = 0.0
    body: bytes = b""


class StreamConnection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, keep_body: bool = False) -> None:
        self._keep_body = keep_body
        self._transport: asyncio.Transport | None = None
        self._answer = Answer()
        self._started = 0.0
        self._head = b""  # all that came until the first content
        self._tail = b""  # an event's end may be cut in two
        self._done: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(BenchError(f"the server closed the connection: {exc or 'no reason given'}"))

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None
        self._answer, self._head, self._tail = Answer(), b"", b""
        self._done = asyncio.get_running_loop().create_future()
        self._started = clock.monotonic()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await self._done

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if not answer.first_content_seconds:
            self._look_for_content(data)
        if self._keep_body:
            answer.body += data
        answer.events += data.count(EVENT_END)
        if self._tail == b"\n" and data[:1] == b"\n":
            answer.events += 1
        self._tail = data[-1:]
        if data.endswith(BODY_END):
            answer.total_seconds = clock.monotonic() - self._started
            if self._done is not None and not self._done.done():
                self._done.set_result(answer)

    def close(self) -> None:
        self._done = None
        if self._transport is not None:
            self._transport.close()

    def _look_for_content(self, data: bytes) -> None:
        self._head += data
        if not self._head.startswith(b"HTTP/1.1 200"):
            self._fail(BenchError(self._head[:500].decode("utf-8", "replace")))
        elif FIRST_CONTENT.search(self._head):
            self._answer.first_content_seconds = clock.monotonic() - self._started
            self._head = b""

    def _fail(self, error: BenchError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


async def connect(port: int, *, keep_body: bool = False) -> StreamConnection:
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(
        lambda: StreamConnection(keep_body), "127.0.0.1", port
    )
    return protocol


def chat_request(port: int, model: str, question: str, tokens: int, key: str = "") -> bytes:
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    ).encode()
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{authorization}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def events_of(raw: bytes) -> list[bytes]:
    """The SSE events of a recorded answer, without HTTP's head and chunk framing."""
    _, _, rest = raw.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return [event + EVENT_END for event in body.split(EVENT_END) if event]


@dataclass(slots=True)
class ClosedLoop:
    """What a fixed number of clients, each asking again at once, got in one round."""

    events: int = 0
    seconds: float = 0.0

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


async def closed_loop(port: int, requests: list[bytes], seconds: float) -> ClosedLoop:
    """One client per request, each repeating its own; counts what arrives inside the window."""
    connections = [await connect(port) for _ in requests]
    answers: list[Answer] = []
    deadline = clock.monotonic() + seconds

    async def repeat(connection: StreamConnection, request: bytes) -> None:
        while clock.monotonic() < deadline:
            answers.append(await connection.ask(request))

    started = clock.monotonic()
    await asyncio.gather(*(repeat(c, r) for c, r in zip(connections, requests, strict=True)))
    elapsed = clock.monotonic() - started
    for connection in connections:
        connection.close()
    return ClosedLoop(sum(answer.events for answer in answers), elapsed)


@dataclass(slots=True)
class OpenLoop:
    """Time to first content of requests that arrive whether or not the server keeps up."""

    first_content_seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def open_loop(
    port: int, request_of: Callable[[int], bytes], arrivals: list[float]
) -> OpenLoop:
    """Send request i at arrivals[i] seconds; idle connections are used again."""
    idle: list[StreamConnection] = [await connect(port) for _ in range(32)]
    result = OpenLoop()
    started = clock.monotonic()

    async def one(index: int) -> None:
        connection = idle.pop() if idle else await connect(port)
        try:
            answer = await connection.ask(request_of(index))
        except (BenchError, TimeoutError) as error:
            result.failures.append(str(error) or "no answer in time")
            connection.close()
            return
        result.first_content_seconds.append(answer.first_content_seconds)
        idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for index, arrival in enumerate(arrivals):
            await asyncio.sleep(max(0.0, started + arrival - clock.monotonic()))
            group.create_task(one(index))
    for connection in idle:
        connection.close()
    return result
