"""What a long prompt costs the answers that are under way: time between tokens, by policy.

Some sequences decode; then a long prompt comes in. For every policy in turn, in one process: how
long the steps are that give the decoding ones their next token, without and with that prompt
beside them, and how long it waits for its own first token.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepflow.bench import random_model
from deepflow.core.engine_policies import POLICIES
from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.engine import FlowServe
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.step_trace import StepSpan, StepTrace

CALM_STEPS = 60  # before the prompt comes
WARM_STEPS = 20  # of those, not counted
DECODER_TOKENS = 16  # of each decoding sequence's prompt

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PacingOptions:
    model: Path | None = None  # None: random weights of `shape`
    shape: str = "llama-100m"
    device: str = "cpu"
    decoders: int = 16
    prompt: int = 4096
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """Medians over the rounds, in milliseconds."""

    calm_p99_ms: float  # between two tokens, nobody else there
    crowded_p99_ms: float  # while the prompt is read
    stretch: float  # the one by the other
    first_token_ms: float  # of the prompt


def run(options: PacingOptions, say: Say) -> dict[str, Pace]:
    with tempfile.TemporaryDirectory(prefix="deepflow-bench-") as scratch:
        folder = options.model
        if folder is None:
            folder = Path(scratch) / options.shape
            random_model.write(random_model.SHAPES[options.shape], folder)
        paces: dict[str, list[Pace]] = {policy: [] for policy in POLICIES}
        for number in range(options.rounds):
            for policy in POLICIES:
                pace = _measure(folder, options, policy, number)
                say(
                    f"round {number + 1}: {policy} {pace.calm_p99_ms:.1f} ms between tokens,"
                    f" {pace.crowded_p99_ms:.1f} ms beside the prompt ({pace.stretch:.1f}x)"
                )
                paces[policy].append(pace)
    return {policy: _median(found) for policy, found in paces.items()}


def _measure(folder: Path, options: PacingOptions, policy: str, seed: int) -> Pace:
    # A chunk is 16 tokens at least.
    steps = CALM_STEPS + options.prompt // 16 + 64
    longest = max(options.prompt + 2, DECODER_TOKENS + steps)
    blocks = 2 + options.decoders * (DECODER_TOKENS + steps) // 16 + options.prompt // 16
    settings = {"max_sequences": options.decoders + 1, "max_tokens": longest, "kv_blocks": blocks}
    load = Load("bench", str(folder), options.device, f"r{seed}", settings, policy=policy)
    with FlowServe.loaded(load) as engine:
        answer = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
        streams = [engine.stream([7 + i] * DECODER_TOKENS, answer) for i in range(options.decoders)]
        _advance(streams, WARM_STEPS)
        trace = engine.record()
        _advance(streams, CALM_STEPS - WARM_STEPS)
        calm = _gaps(trace)
        del trace.spans[:-1]  # the prompt may be read in a single step: that is one gap, too
        began = time.monotonic()
        prompt = list(itertools.islice(itertools.cycle(range(3, 1000)), options.prompt))
        reader = engine.stream(prompt, SamplingParams(max_tokens=1, temperature=0.0))
        next(reader)
        first_token = time.monotonic() - began
        crowded = _gaps(trace)
        for stream in streams:
            stream.close()
    calm_p99, crowded_p99 = _p99(calm), _p99(crowded)
    return Pace(calm_p99 * 1e3, crowded_p99 * 1e3, crowded_p99 / calm_p99, first_token * 1e3)


def _advance(streams: Sequence[Iterator[Any]], tokens: int) -> None:
    for _ in range(tokens):
        for stream in streams:
            next(stream)


def _gaps(trace: StepTrace) -> list[float]:
    """From the end of one step to the end of the next: what a decoding sequence waits."""

    def end(span: StepSpan) -> float:
        return span.ran[1]

    return [end(b) - end(a) for a, b in itertools.pairwise(trace.spans)]


def _p99(values: list[float]) -> float:
    """The largest of few: a long prompt read at once makes one long gap, and that one counts."""
    ordered = sorted(values)
    return ordered[-1 - len(ordered) // 100]


def _median(found: list[Pace]) -> Pace:
    columns = [asdict(pace) for pace in found]
    return Pace(**{name: statistics.median(it[name] for it in columns) for name in columns[0]})
