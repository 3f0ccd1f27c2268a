"""What more tiers of KV cache bring: hits kept, time to first token saved, choices made well.

    hits      prompts over a working set of several device caches, with more tiers, without, and
              with a device that holds all of it
    choices   prompts whose prefix has left the device, fetched and computed in turn, beside what
              the cost model would have done

One engine at a time, in this process; the figures of one case come from neighbouring moments.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepflow.bench import random_model
from deepflow.core.model_spec import ModelSpec
from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Load, Submit
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS, BY_COST, NEVER

SEED = 20250101
WORKING_SET = 4  # device caches
TAIL_TOKENS = 8  # of each prompt, after what it shares
PASSES = 6  # over the working set
CASE_BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
WARM_PROMPTS = 12
TIE = 1.05  # whatever is within this of the quicker way was chosen well
EMULATED_SHAPE = random_model.Shape(
    "LlamaForCausalLM", "llama", 4096, 14336, 32, 32, 8, 128, 128_256
)
EMULATED_CONTEXT = 32_768
FIRST_TOKEN = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RtcOptions:
    model: Path | None = None  # None: random weights of `shape`
    shape: str = ""  # empty: what suits the device
    device: str = "cpu"
    prefix_blocks: int = 16  # of each prompt of the working set
    device_prefixes: int = 6  # that the device holds at a time
    rounds: int = 7


@dataclass(frozen=True, slots=True)
class Case:
    """Lower quartiles over the rounds: others on the machine only ever add."""

    tier: str
    tokens: int  # of the prefix that has left the device
    fetch_ms: float  # to the first token
    compute_ms: float
    choice: str  # of the cost model, in most rounds: fetch or compute

    @property
    def is_right(self) -> bool:
        chosen, other = self.fetch_ms, self.compute_ms
        if self.choice == "compute":
            chosen, other = other, chosen
        return chosen <= TIE * other


@dataclass(frozen=True, slots=True)
class RtcReport:
    device: str
    hit_rate_infinite: float
    hit_rate_tiers: float
    hit_rate_device: float  # alone
    cases: list[Case]

    def as_dict(self) -> dict[str, Any]:
        reused = [it for it in self.cases if it.choice == "fetch"]
        return {
            "device": self.device,
            "hit_rate": {
                "infinite": self.hit_rate_infinite,
                "tiers": self.hit_rate_tiers,
                "device": self.hit_rate_device,
            },
            "kept_hits": self.hit_rate_tiers / self.hit_rate_infinite,
            "right_choices": sum(it.is_right for it in self.cases) / len(self.cases),
            "reused": len(reused),
            "reuse_was_quicker": sum(it.fetch_ms < it.compute_ms for it in reused),
            "cases": [asdict(it) | {"is_right": it.is_right} for it in self.cases],
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
            return [self._case(engine, draw, tier, blocks) for blocks in self._case_blocks]

    def _case(self, engine: "_Engine", draw: random.Random, tier: Tier, blocks: int) -> Case:
        prefix = self._tokens(draw, blocks * self._block_size)
        self._measure(engine, draw, prefix, NEVER)
        times: dict[str, list[float]] = {ALWAYS: [], NEVER: []}
        fetches = 0
        for _ in range(self._options.rounds):
            fetches += engine.would_fetch([*prefix, *[0] * TAIL_TOKENS])
            for choice, seconds in times.items():
                seconds.append(self._measure(engine, draw, prefix, choice))
        fetch_ms, compute_ms = (sorted(it)[len(it) // 4] * 1e3 for it in times.values())
        choice = "fetch" if 2 * fetches > self._options.rounds else "compute"
        case = Case(tier.name.lower(), len(prefix), fetch_ms, compute_ms, choice)
        self._say(
            f"{case.tokens} tokens from {case.tier}: {fetch_ms:.2f} ms fetched,"
            f" {compute_ms:.2f} ms computed; the cost model would {choice}"
        )
        return case

    def _measure(
        self, engine: "_Engine", draw: random.Random, prefix: list[int], choice: str
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
    def _engine(self, **settings: int) -> "Iterator[_Engine]":
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
            yield _Engine(master)
        finally:
            master.close()


class _Engine:
    """One request at a time."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self.config = master.config
        self._handles = 0

    @property
    def choice(self) -> str:
        return self._master.prefetch.choice

    @choice.setter
    def choice(self, choice: str) -> None:
        self._master.prefetch.choice = choice

    def answer(self, prompt: list[int]) -> tuple[float, int]:
        """Seconds to the first token, and how many of the prompt's were cached."""
        self._handles += 1
        began = time.monotonic()
        self._master.obey(Submit(self._handles, prompt, FIRST_TOKEN))
        while True:
            output = self._master.step()
            if output is not None and output.finished:
                end = output.finished[0]
                assert end.reason == "length", end.message
                return time.monotonic() - began, end.cached_tokens
            if output is None:
                wait_readable(self._master.wake_fds, self._master.seconds_to_next)

    def would_fetch(self, prompt: list[int]) -> bool:
        """What the cost model says, as things stand."""
        chain = BlockChain(self.config.identity_seed(b"").root(), self.config.block_size)
        nodes = self._master.cache.match_in_tiers(chain, prompt)
        assert nodes and not any(node.is_in(Tier.DEVICE) for node in nodes)
        before, self.choice = self.choice, BY_COST
        reused = self._master.prefetch.choose([node.nearest for node in nodes], len(prompt))
        self.choice = before
        return reused > 0

    def empty_device(self) -> None:
        """Put all of it away, then take every block of the device once."""
        cache = self._master.cache
        while unsafe := cache.idle_unsafe():
            for block in unsafe:
                cache.copy(block)
            self._settle()
        blocks = cache.alloc_blocks([], cache.num_available * self.config.block_size)
        assert blocks is not None
        cache.free(blocks)

    def _settle(self) -> None:
        """Until no copy is under way."""
        while True:
            self._master.step()
            if not self._master.cache.num_copying:
                return
            wait_readable(self._master.wake_fds, 1.0)
