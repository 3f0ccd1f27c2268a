"""The whole mesh against bare Starlette: the same events, the same client, in turn, in one run.

The engine is `emulated:zero`, which takes no time to compute, so that what is measured is the mesh:
HTTP, validation, the job, template, tokenizer, scheduler, prefix index, rings, text and SSE.
"""

import asyncio
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from deepflow.bench import processes
from deepflow.bench.sse_client import (
    BenchError,
    ClosedLoop,
    chat_request,
    closed_loop,
    connect,
    events_of,
    open_loop,
)

MODEL = "bench"
OPEN_LOOP_SEED = 20250101
WARM_UP_SECONDS = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MeshOptions:
    streams: int = 64
    tokens: int = 256
    rounds: int = 5
    round_seconds: float = 3.0
    open_loop_seconds: float = 10.0
    idle_requests: int = 100


@dataclass(frozen=True, slots=True)
class MeshReport:
    """Events are tokens here: one token an event. `idle`: one request after another, nothing else;
    the other times to first token are those of the open loop at half the maximum.
    """

    tok_s: float
    ceiling_tok_s: float
    ratio: float
    cpu_us_per_token: float
    ttft_overhead_ms_p50: float
    ttft_overhead_ms_p99: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    ceiling_ttft_ms_p50: float
    ceiling_ttft_ms_p99: float
    idle_ttft_overhead_ms_p50: float
    idle_ttft_overhead_ms_p99: float
    idle_ttft_ms_p50: float
    idle_ttft_ms_p99: float
    ceiling_idle_ttft_ms_p50: float
    ceiling_idle_ttft_ms_p99: float
    open_loop_requests_s: float
    open_loop_failures: int
    cpu_us_per_token_by_process: dict[str, float]
    streams: int
    tokens_per_request: int
    rounds: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run(options: MeshOptions, say: Say) -> MeshReport:
    """Start both servers, measure them in turn, stop them."""
    with tempfile.TemporaryDirectory(prefix="deepflow-bench-") as folder:
        port = processes.free_port()
        say("starting the mesh with an emulated device that takes no time")
        arguments = ["--device", "emulated:zero", "--port", str(port), "--name", MODEL]
        arguments += ["--data-dir", str(Path(folder) / "data")]
        with processes.stack(arguments, Path(folder) / "up.log") as mesh:
            events = asyncio.run(_record(port, options.tokens))
            recording = Path(folder) / "events"
            recording.write_bytes(b"".join(events))
            bare_port = processes.free_port()
            bare = ["-m", "deepflow.bench.bare_server", str(bare_port), str(recording)]
            with processes.server(bare, bare_port):
                return asyncio.run(_measure(options, port, bare_port, mesh, say))


async def _record(port: int, tokens: int) -> list[bytes]:
    """One answer of the mesh, event by event, for the ceiling to replay."""
    connection = await connect(port, keep_body=True)
    answer = await connection.ask(chat_request(port, MODEL, _question(0), tokens))
    connection.close()
    return events_of(answer.body)


async def _measure(
    options: MeshOptions, port: int, bare_port: int, mesh: psutil.Process, say: Say
) -> MeshReport:
    mesh_requests = _requests(port, options)
    bare_requests = _requests(bare_port, options)
    for warm_port, requests in ((port, mesh_requests), (bare_port, bare_requests)):
        await closed_loop(warm_port, requests, WARM_UP_SECONDS)
    mesh_rounds: list[ClosedLoop] = []
    bare_rounds: list[ClosedLoop] = []
    before = processes.cpu_seconds_by_name(mesh)
    for number in range(options.rounds):
        mesh_rounds.append(await closed_loop(port, mesh_requests, options.round_seconds))
        bare_rounds.append(await closed_loop(bare_port, bare_requests, options.round_seconds))
        say(
            f"round {number + 1}/{options.rounds}: mesh {mesh_rounds[-1].events_per_second:,.0f}"
            f" events/s, bare Starlette {bare_rounds[-1].events_per_second:,.0f}"
        )
    after = processes.cpu_seconds_by_name(mesh)
    tok_s = statistics.median(r.events_per_second for r in mesh_rounds)
    ceiling = statistics.median(r.events_per_second for r in bare_rounds)
    events = sum(r.events for r in mesh_rounds)
    by_process = {
        name: (seconds - before.get(name, 0.0)) / events * 1e6 for name, seconds in after.items()
    }
    say(f"one request after another, {options.idle_requests} of each")
    idle, bare_idle = await _first_content_when_idle(
        (port, mesh_requests[0]), (bare_port, bare_requests[0]), options.idle_requests
    )
    rate = tok_s / 2 / options.tokens
    say(f"open loop at half the maximum: {rate:.1f} requests/s")
    arrivals = _arrivals(rate, options.open_loop_seconds)
    ttft, failures = await _first_content(port, options.tokens, arrivals)
    bare_ttft, _ = await _first_content(bare_port, options.tokens, arrivals)
    return MeshReport(
        tok_s=tok_s,
        ceiling_tok_s=ceiling,
        ratio=tok_s / ceiling,
        cpu_us_per_token=sum(by_process.values()),
        ttft_overhead_ms_p50=_percentile(ttft, 50) - _percentile(bare_ttft, 50),
        ttft_overhead_ms_p99=_percentile(ttft, 99) - _percentile(bare_ttft, 99),
        ttft_ms_p50=_percentile(ttft, 50),
        ttft_ms_p99=_percentile(ttft, 99),
        ceiling_ttft_ms_p50=_percentile(bare_ttft, 50),
        ceiling_ttft_ms_p99=_percentile(bare_ttft, 99),
        idle_ttft_overhead_ms_p50=_percentile(idle, 50) - _percentile(bare_idle, 50),
        idle_ttft_overhead_ms_p99=_percentile(idle, 99) - _percentile(bare_idle, 99),
        idle_ttft_ms_p50=_percentile(idle, 50),
        idle_ttft_ms_p99=_percentile(idle, 99),
        ceiling_idle_ttft_ms_p50=_percentile(bare_idle, 50),
        ceiling_idle_ttft_ms_p99=_percentile(bare_idle, 99),
        open_loop_requests_s=rate,
        open_loop_failures=failures,
        cpu_us_per_token_by_process=by_process,
        streams=options.streams,
        tokens_per_request=options.tokens,
        rounds=options.rounds,
    )


def _requests(port: int, options: MeshOptions) -> list[bytes]:
    return [
        chat_request(port, MODEL, _question(number), options.tokens)
        for number in range(options.streams)
    ]


def _question(number: int) -> str:
    return f"Stream {number}: what is a task executor, and what does it do all day?"


async def _first_content_when_idle(
    mesh: tuple[int, bytes], bare: tuple[int, bytes], count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds to the first content where nobody else asks: both in turn, each `count` times.

    `mesh`, `bare`: port and request.
    """
    connections = [await connect(port) for port, _ in (mesh, bare)]
    milliseconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for connection, (_, request), times in zip(
            connections, (mesh, bare), milliseconds, strict=True
        ):
            times.append((await connection.ask(request)).first_content_seconds * 1000)
    for connection in connections:
        connection.close()
    return milliseconds


async def _first_content(port: int, tokens: int, arrivals: list[float]) -> tuple[list[float], int]:
    """Milliseconds to the first content of each answer, and how many had none."""
    result = await open_loop(
        port, lambda index: chat_request(port, MODEL, _question(index), tokens), arrivals
    )
    if len(result.first_content_seconds) < 2:
        raise BenchError(f"nothing was answered: {result.failures[:1]}")
    return [seconds * 1000 for seconds in result.first_content_seconds], len(result.failures)


def _arrivals(rate: float, seconds: float) -> list[float]:
    """A Poisson process, the same in every run."""
    draw = random.Random(OPEN_LOOP_SEED)
    arrivals: list[float] = []
    moment = draw.expovariate(rate)
    while moment < seconds:
        arrivals.append(moment)
        moment += draw.expovariate(rate)
    return arrivals


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
