"""What more tiers of KV cache bring: hits kept, time to first token saved, choices made well.

    hits      prompts over a working set of several device caches, with more tiers, without, and
              with a device that holds all of it
    choices   prompts whose prefix has left the device, fetched and computed in turn, beside what
              the cost model would have done

One engine at a time, in this process. Every round visits every case, and both ways of a case in
neighbouring moments: what else the machine does falls on all of them alike.
"""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepflow.bench import random_model
from deepflow.bench.rtc_cases import Case, case_of, summary
from deepflow.bench.rtc_engine import OneRequest
from deepflow.core.model_spec import ModelSpec
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS, NEVER

SEED = 20250101
WORKING_SET = 4  # device caches
TAIL_TOKENS = 8  # of each prompt, after what it shares
PASSES = 6  # over the working set
CASE_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
WARM_PROMPTS = 12
EMULATED_SHAPE = random_model.Shape(
    "LlamaForCausalLM", "llama", 4096, 14336, 32, 32, 8, 128, 128_256
)
EMULATED_CONTEXT = 32_768

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RtcOptions:
    model: Path | None = None  # None: random weights of `shape`
    shape: str = ""  # empty: what suits the device
    device: str = "cpu"
    prefix_blocks: int = 16  # of each prompt of the working set
    device_prefixes: int = 6  # that the device holds at a time
    rounds: int = 31


@dataclass(frozen=True, slots=True)
class RtcReport:
    device: str
    hit_rate_infinite: float
    hit_rate_tiers: float
    hit_rate_device: float  # alone
    cases: list[Case]

    def as_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "hit_rate": {
                "infinite": self.hit_rate_infinite,
                "tiers": self.hit_rate_tiers,
                "device": self.hit_rate_device,
            },
            "kept_hits": self.hit_rate_tiers / self.hit_rate_infinite,
            **summary(self.cases),
            "cases": [it.as_dict() for it in self.cases],
        }


def run(options: RtcOptions, say: Say) -> RtcReport:
    """Raises ValueError where the model cannot be held so."""
    with tempfile.TemporaryDirectory(prefix="deepflow-bench-") as scratch:
        folder = options.model or _write_model(options, Path(scratch))
        bench = _Bench(options, folder, Path(scratch) / "kv", say)
        rates = bench.hit_rates()
        cases = [*bench.cases(Tier.DRAM), *bench.cases(Tier.DISK)]
    return RtcReport(options.device, *rates, cases)


def _write_model(options: RtcOptions, scratch: Path) -> Path:
    """An emulated device reads no weights, so its model may be as large as those it is made for."""
    folder = scratch / "model"
    if not options.device.startswith("emulated:"):
        random_model.write(random_model.SHAPES[options.shape or "llama-15m"], folder)
        return folder
    shape = random_model.SHAPES[options.shape] if options.shape else EMULATED_SHAPE
    folder.mkdir()
    config = shape.config | {"max_position_embeddings": EMULATED_CONTEXT, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class _Bench:
    def __init__(self, options: RtcOptions, folder: Path, disk: Path, say: Say) -> None:
        self._options, self._folder, self._disk, self._say = options, folder, disk, say
        spec = ModelSpec.from_folder(folder)
        self._vocabulary = spec.vocab_size
        with self._engine(kv_blocks=2, max_tokens=2) as engine:
            config = engine.config
        self._block_size = config.block_size
        self._block_bytes = config.kv_bytes // config.kv_blocks
        fitting = spec.context_length // self._block_size - 1  # one block for the rest of a prompt
        self._case_blocks = [blocks for blocks in CASE_BLOCKS if blocks <= fitting]
        if not self._case_blocks or options.prefix_blocks > fitting:
            raise ValueError(f"the model's context of {spec.context_length} tokens is too short")

    def hit_rates(self) -> tuple[float, float, float]:
        blocks = self._options.prefix_blocks
        tail = -(-(TAIL_TOKENS + 1) // self._block_size)
        on_device = 1 + self._options.device_prefixes * blocks + tail
        count = WORKING_SET * on_device // blocks
        tokens = (blocks + tail) * self._block_size
        room = 2 * count * blocks * self._block_bytes
        settings = (
            {"kv_blocks": 2 + 2 * count * (blocks + tail) * PASSES},
            {"kv_blocks": on_device, "kv_dram_bytes": room},
            {"kv_blocks": on_device},
        )
        rates = []
        for name, it in zip(("all on the device", "two tiers", "one tier"), settings, strict=True):
            rates.append(self._hit_rate(count, it | {"max_tokens": tokens}))
            self._say(f"{count} prefixes, {name}: {rates[-1]:.1%} of their tokens were cached")
        return rates[0], rates[1], rates[2]

    def cases(self, tier: Tier) -> list[Case]:
        longest = self._case_blocks[-1]
        tokens = (longest + 1) * self._block_size
        room = 16 * sum(self._case_blocks) * self._block_bytes
        sizes = {"kv_dram_bytes": room} if tier is Tier.DRAM else {"kv_disk_bytes": room}
        settings = {"kv_blocks": 4 * longest, "max_tokens": tokens, **sizes}
        with self._engine(**settings) as engine:
            draw = random.Random(SEED)
            for _ in range(WARM_PROMPTS):
                blocks = draw.choice(self._case_blocks)
                prefix = self._tokens(draw, blocks * self._block_size)
                for choice in (NEVER, ALWAYS):
                    self._measure(engine, draw, prefix, choice)
            trials = [
                _Trial(self._tokens(draw, blocks * self._block_size))
                for blocks in self._case_blocks
            ]
            for trial in trials:
                self._measure(engine, draw, trial.prefix, NEVER)
            for number in range(self._options.rounds):
                for trial in trials:
                    self._round(engine, draw, trial, is_fetch_first=bool(number % 2))
        cases = [trial.case(tier) for trial in trials]
        for case in cases:
            self._say(
                f"{case.tokens} tokens from {case.tier}: {case.fetch_ms:.2f} ms fetched,"
                f" {case.compute_ms:.2f} ms computed; the cost model would {case.choice}"
            )
        return cases

    def _round(
        self, engine: OneRequest, draw: random.Random, trial: "_Trial", *, is_fetch_first: bool
    ) -> None:
        trial.fetches.append(engine.would_fetch([*trial.prefix, *[0] * TAIL_TOKENS]))
        ways = (ALWAYS, NEVER) if is_fetch_first else (NEVER, ALWAYS)
        for choice in ways:
            trial.seconds[choice].append(self._measure(engine, draw, trial.prefix, choice))

    def _measure(
        self, engine: OneRequest, draw: random.Random, prefix: list[int], choice: str
    ) -> float:
        """Seconds to the first token; the prefix has left the device before and after."""
        engine.choice = choice
        seconds, _ = engine.answer([*prefix, *self._tokens(draw, TAIL_TOKENS)])
        engine.empty_device()
        return seconds

    def _hit_rate(self, count: int, settings: dict[str, int]) -> float:
        draw = random.Random(SEED)
        prefixes = [
            self._tokens(draw, self._options.prefix_blocks * self._block_size) for _ in range(count)
        ]
        hits = total = 0
        with self._engine(**settings) as engine:
            engine.choice = ALWAYS  # what is kept, not what is quicker
            for _ in range(PASSES):
                for prefix in draw.sample(prefixes, count):
                    _, cached = engine.answer([*prefix, *self._tokens(draw, TAIL_TOKENS)])
                    hits += cached
                    total += len(prefix)
        return hits / total

    def _tokens(self, draw: random.Random, count: int) -> list[int]:
        return [draw.randrange(3, self._vocabulary) for _ in range(count)]

    @contextmanager
    def _engine(self, **settings: int) -> Iterator[OneRequest]:
        load = Load(
            "bench",
            str(self._folder),
            self._options.device,
            "bench",
            settings,
            kv_disk_folder=str(self._disk),
        )
        built = build_executor(load, lambda step: nullcontext())
        master = Master(built.config, built.executor, grammars=built.grammars, tiers=built.tiers)
        try:
            yield OneRequest(master)
        finally:
            master.close()


@dataclass(slots=True)
class _Trial:
    """What the rounds so far have shown of one prefix."""

    prefix: list[int]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {ALWAYS: [], NEVER: []})
    fetches: list[bool] = field(default_factory=list)  # what the cost model would have done

    def case(self, tier: Tier) -> Case:
        choice = "fetch" if 2 * sum(self.fetches) > len(self.fetches) else "compute"
        seconds = self.seconds
        return case_of(tier.name.lower(), len(self.prefix), seconds[ALWAYS], seconds[NEVER], choice)
