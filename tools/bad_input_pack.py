"""Sends every bad request to a running stack while somebody else uses it, and says what it cost.

    python -m tools.bad_input_pack http://127.0.0.1:8000 demo [--schemas 10000] [--concurrency 16]

Runs on the stack's own machine: the memory of its engines is read from their processes.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil

from tests.e2e.bad_requests import COMPLETIONS, FIELDS, STREAMING, Bad
from tests.e2e.bombs import BOMBS, HARD, distinct_schema

SECONDS_MAX = 60.0
MIB = 1 << 20
SAMPLES = 10  # of the memory, while the schemas are sent
_JSON = {"content-type": "application/json"}
_GOOD = {"prompt": "The gateway", "temperature": 0, "max_tokens": 24, "ignore_eos": True}


class Answer(NamedTuple):
    """What came back for one bad request."""

    bad: Bad
    status: int
    param: str | None  # that the error names
    is_stream: bool  # whether the status line was that of a stream
    seconds: float
    text: str

    @property
    def is_refused(self) -> bool:
        """By the field that is wrong, and before a stream began."""
        return self.status == 400 and self.param == self.bad.param and not self.is_stream

    @property
    def is_answered(self) -> bool:
        return self.status == 200 and '"error"' not in self.text


async def send(http: httpx.AsyncClient, model: str, bad: Bad, *, stream: bool) -> Answer:
    body = bad.body(model, stream=stream)
    began = time.perf_counter()
    reply = await http.post(bad.path, content=body, headers=_JSON)
    seconds = time.perf_counter() - began
    is_stream = reply.headers["content-type"].startswith("text/event-stream")
    error: dict[str, Any] = {}
    if not is_stream:
        error = reply.json().get("error") or {}
    return Answer(bad, reply.status_code, error.get("param"), is_stream, seconds, reply.text)


async def send_all(
    http: httpx.AsyncClient, model: str, bads: Iterable[Bad], *, streams: Sequence[bool]
) -> list[Answer]:
    """One after another; those of streaming routes in every way of `streams`."""
    return [
        await send(http, model, bad, stream=stream)
        for bad in bads
        for stream in (streams if bad.path in STREAMING else (False,))
    ]


async def send_schemas(
    http: httpx.AsyncClient, model: str, indexes: Iterable[int], *, concurrency: int
) -> list[tuple[int, float]]:
    """Statuses and seconds of one request for each schema; no two schemas are equal."""
    waiting, answers = iter(indexes), []

    async def work() -> None:
        for index in waiting:
            body = {"model": model, "prompt": "x", "max_tokens": 1}
            began = time.perf_counter()
            reply = await http.post(
                COMPLETIONS, json=body | {"guided_json": distinct_schema(index)}
            )
            answers.append((reply.status_code, time.perf_counter() - began))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return answers


@dataclass
class GoodClient:
    """Asks the same again and again, and remembers whether the answer was ever another one."""

    http: httpx.AsyncClient
    model: str
    expected: str = ""
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def is_unharmed(self) -> bool:
        return bool(self.seconds) and not self.wrong

    async def ask(self) -> str:
        """The text of one streamed answer; what else came, where something is wrong."""
        body = {"model": self.model, "stream": True, **_GOOD}
        text, is_done = "", False
        async with self.http.stream("POST", COMPLETIONS, json=body) as reply:
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    is_done = True
                elif line:
                    text += _text_of(line)
        return text if is_done else f"cut short: {text}"

    async def go_on(self) -> None:
        while True:
            began = time.perf_counter()
            text = await self.ask()
            self.seconds.append(time.perf_counter() - began)
            if text != self.expected:
                self.wrong.append(text)


def _text_of(line: str) -> str:
    choices = json.loads(line.removeprefix("data: ")).get("choices")
    return choices[0]["text"] if choices else line


@contextlib.asynccontextmanager
async def good_client(http: httpx.AsyncClient, model: str) -> AsyncIterator[GoodClient]:
    """It asks for as long as the block lasts, and at least once after what the block did."""
    client = GoodClient(http, model)
    client.expected = await client.ask()
    asking = asyncio.create_task(client.go_on())
    try:
        yield client
        answers = len(client.seconds)
        async with asyncio.timeout(SECONDS_MAX):
            while len(client.seconds) < answers + 2 and not asking.done():
                await asyncio.wait([asking], timeout=0.02)
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


class Memory(NamedTuple):
    """Of the engines of a stack and of their compilers of grammars."""

    engine_bytes: int
    worker_bytes: int
    workers: int

    @property
    def shown(self) -> dict[str, float]:
        engine, worker = self.engine_bytes / MIB, self.worker_bytes / MIB
        return {
            "engine_mib": round(engine, 1),
            "worker_mib": round(worker, 1),
            "workers": self.workers,
        }


def memory_below(root: psutil.Process) -> Memory:
    """A worker is a keeper and the hand that it lends: two processes, counted as one."""
    engine = worker = workers = 0
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if _runs(process, "services.task_executor.flowserve.grammar.worker"):
                worker += process.memory_info().rss
                parent = process.parent()
                workers += parent is not None and _runs(parent, "services.task_executor.flowserve")
            elif _runs(process, "services.task_executor.flowserve"):
                engine += process.memory_info().rss
    return Memory(engine, worker, workers)


def _runs(process: psutil.Process, module: str) -> bool:
    return module in process.cmdline()


def stack_behind(url: str) -> psutil.Process:
    """The process that started the one that listens there."""
    port = urlsplit(url).port
    for connection in psutil.net_connections("tcp"):
        is_there = connection.laddr and connection.laddr.port == port
        if is_there and connection.status == psutil.CONN_LISTEN:
            parent = psutil.Process(connection.pid).parent()
            assert parent is not None
            return parent
    raise SystemExit(f"nothing on this machine listens at {url}")


def summary(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(value * 1000 for value in seconds)
    return {
        "count": len(ordered),
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 2),
        "max_ms": round(ordered[-1], 2),
    }


def _group(answers: Sequence[Answer], *, may_answer: bool) -> dict[str, Any]:
    wrong = [a for a in answers if not (a.is_refused or (may_answer and a.is_answered))]
    for answer in wrong:
        change = str(answer.bad.change)[:120]
        print(f"  ! {answer.status} {answer.param!r} not {answer.bad.param!r}: {change}")
        print(f"    {answer.text[:200]}")
    refused = [a.seconds for a in answers if a.status != 200]
    return {
        **summary(refused or [a.seconds for a in answers]),
        "statuses": dict(collections.Counter(a.status for a in answers)),
        "wrong": len(wrong),
    }


def _print_row(name: str, row: dict[str, Any]) -> None:
    times = "  ".join(f"{key} {row[key]:8.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
    rest = {k: v for k, v in row.items() if k not in ("count", "p50_ms", "p99_ms", "max_ms")}
    print(f"{name:26} {row['count']:6}  {times}  {rest}", flush=True)


def _parts(count: int, parts: int) -> Iterator[range]:
    edges = [count * part // parts for part in range(parts + 1)]
    return (range(low, high) for low, high in itertools.pairwise(edges))


async def _measure_schemas(
    http: httpx.AsyncClient, arguments: argparse.Namespace, first: int
) -> dict[str, Any]:
    root = stack_behind(arguments.url)
    answers: list[tuple[int, float]] = []
    memories = [memory_below(root)]
    began = time.perf_counter()
    for part in _parts(arguments.schemas, SAMPLES):
        indexes = range(first + part.start, first + part.stop)
        answers += await send_schemas(
            http, arguments.model, indexes, concurrency=arguments.concurrency
        )
        memories.append(memory_below(root))
    return {
        **summary([seconds for _, seconds in answers]),
        "statuses": dict(collections.Counter(status for status, _ in answers)),
        "per_second": round(len(answers) / (time.perf_counter() - began), 1),
        "memory": [memory.shown for memory in memories],
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"groups": {}}
    async with (
        httpx.AsyncClient(base_url=arguments.url, timeout=SECONDS_MAX) as http,
        httpx.AsyncClient(base_url=arguments.url, timeout=SECONDS_MAX) as other,
        good_client(other, arguments.model) as good,
    ):
        for packs, may_answer in ((FIELDS, False), (BOMBS, False), (HARD, True)):
            for name, bads in packs.items():
                answers = await send_all(http, arguments.model, bads, streams=(False, True))
                report["groups"][name] = _group(answers, may_answer=may_answer)
                _print_row(name, report["groups"][name])
        report["good_client"] = {"during_pack": summary(good.seconds)}
        if arguments.schemas:
            good.seconds.clear()
            # Another run against the same stack meets none of its schemas again.
            report["schemas"] = await _measure_schemas(http, arguments, time.time_ns() // 1000)
            _print_row("distinct schemas", report["schemas"])
    if arguments.schemas:
        report["good_client"]["during_schemas"] = summary(good.seconds)
    report["good_client"]["byte_equal"] = good.is_unharmed
    print(f"good client {report['good_client']}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="The bad-input pack against a running stack.")
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=10_000, help="distinct valid schemas")
    parser.add_argument("--concurrency", type=int, default=16)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
