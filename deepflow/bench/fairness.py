"""What a greedy tenant costs a modest one: its latency alone, and beside many long requests.

The device is emulated, so that steps take the time of an accelerator and none of this machine's
cores, and its batch is small, so that its rows are what is short and not the cores of the mesh.
Rounds without and with the greedy tenant alternate.
"""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from deepflow.bench import processes
from deepflow.bench.sse_client import (
    Answer,
    BenchError,
    StreamConnection,
    chat_request,
    connect,
)

MODEL = "bench"
DEVICE = "emulated:ascend-910b"
ROWS = 16
KEYS_SECONDS_MAX = 60.0
SETTLE_SECONDS = 2.0  # until the greedy tenant fills every row
REFUSED_SECONDS = 0.5  # before a greedy client asks again

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FairnessOptions:
    greedy: int = 128  # requests at a time
    greedy_tokens: int = 256
    modest_tokens: int = 64
    asks: int = 40  # of the modest tenant in a round, one after the other
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Latency:
    first_token_ms_p50: float
    first_token_ms_p99: float
    total_ms_p50: float
    total_ms_p99: float


@dataclass(frozen=True, slots=True)
class FairnessReport:
    alone: Latency
    beside: Latency
    ratio_total_p99: float
    ratio_first_token_p99: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run(options: FairnessOptions, say: Say) -> FairnessReport:
    with tempfile.TemporaryDirectory(prefix="deepflow-bench-") as folder:
        port, data = processes.free_port(), Path(folder) / "data"
        arguments = ["--device", DEVICE, "--port", str(port), "--name", MODEL]
        say(f"starting the mesh with {DEVICE}")
        arguments += ["--data-dir", str(data)]
        settings = {"DEEPFLOW_TASK_EXECUTOR_MAX_SEQUENCES": str(ROWS)}
        with processes.stack(arguments, Path(folder) / "up.log", settings):
            keys = {tenant: _make_key(tenant, data) for tenant in ("modest", "greedy")}
            return asyncio.run(_measure(options, port, keys, say))


def _make_key(tenant: str, data: Path) -> str:
    command = [sys.executable, "-m", "deepflow.cli.main", "keys", "create", "--json"]
    command += ["--tenant", tenant, "--data-dir", str(data)]
    made = subprocess.run(
        command, capture_output=True, text=True, timeout=KEYS_SECONDS_MAX, check=False
    )
    if made.returncode:
        raise BenchError(f"no key could be made: {made.stderr}")
    return str(json.loads(made.stdout)["key"])


async def _measure(
    options: FairnessOptions, port: int, keys: dict[str, str], say: Say
) -> FairnessReport:
    alone: list[Answer] = []
    beside: list[Answer] = []
    await _ask_in_turn(options, port, keys["modest"])  # warms up
    for number in range(options.rounds):
        alone += await _ask_in_turn(options, port, keys["modest"])
        async with _crowd(options, port, keys["greedy"]):
            await asyncio.sleep(SETTLE_SECONDS)
            beside += await _ask_in_turn(options, port, keys["modest"])
        say(f"round {number + 1}/{options.rounds} done")
    before, after = _latency(alone), _latency(beside)
    return FairnessReport(
        before,
        after,
        after.total_ms_p99 / before.total_ms_p99,
        after.first_token_ms_p99 / before.first_token_ms_p99,
    )


async def _ask_in_turn(options: FairnessOptions, port: int, key: str) -> list[Answer]:
    connection = await connect(port)
    try:
        return [
            await connection.ask(
                chat_request(port, MODEL, f"Ask {i}: hello?", options.modest_tokens, key)
            )
            for i in range(options.asks)
        ]
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def _crowd(options: FairnessOptions, port: int, key: str) -> AsyncIterator[None]:
    """Asks without a pause, as often at a time as it can; what is refused is asked again."""
    connections = [await connect(port) for _ in range(options.greedy)]

    async def ask_on(connection: StreamConnection, number: int) -> None:
        request = chat_request(port, MODEL, f"More {number}!", options.greedy_tokens, key)
        try:
            while True:
                try:
                    await connection.ask(request)
                except (BenchError, TimeoutError):
                    connection.close()
                    await asyncio.sleep(REFUSED_SECONDS)
                    connection = await connect(port)
        finally:
            connection.close()

    tasks = [asyncio.create_task(ask_on(it, n)) for n, it in enumerate(connections)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(SETTLE_SECONDS)


def _latency(answers: list[Answer]) -> Latency:
    first = [answer.first_content_seconds * 1e3 for answer in answers]
    total = [answer.total_seconds * 1e3 for answer in answers]
    return Latency(_point(first, 50), _point(first, 99), _point(total, 50), _point(total, 99))


def _point(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
