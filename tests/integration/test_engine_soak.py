"""Ten thousand random requests through one small engine: all end, and all that they held is free.

Lengths, sampling, cancellations, shared prefixes, preemption, priorities, log probabilities and
grammars, good and bad, in one batch, each step planned while one runs, with KV in three tiers.
Requests are determined by SEED; nothing is measured.
"""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from deepflow.bench.random_model import Shape, write
from deepflow.core.sampling import Grammar, SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Cancel, Load, StepOutput, Submit
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS

SEED = 20261121
REQUESTS = 10_000
IN_FLIGHT_MAX = 250
ROWS = 16
VOCAB = 1536
# Full rows need twice as many blocks as there are, so that some are preempted.
SETTINGS = {
    **{"max_sequences": ROWS, "kv_blocks": 64, "max_tokens": 128, "max_step_tokens": 96},
    "steps_in_flight": 2,
    # A block takes 2 KiB; on disk a little more.
    **{"kv_dram_bytes": 48 << 11, "kv_disk_bytes": 96 * (2048 + 64)},
}
# Of the process in the second half of the requests, which are remembered here until the end.
GROWTH_BYTES_MAX = 64 << 20
GRAMMARS = [
    *(Grammar("choice", json.dumps([f"word {i}", f"another {i}"])) for i in range(20)),
    *(Grammar("regex", f"[a-{chr(98 + i)}]{{1,{i + 1}}}") for i in range(20)),
    *(
        Grammar("json_schema", json.dumps({"enum": [i, "x" * (i + 1), {"a": i}, [True, None]]}))
        for i in range(20)
    ),
]
BAD_GRAMMARS = [
    Grammar("regex", "(never closed"),
    Grammar("json_schema", '{"type": "no such type"}'),
    Grammar("choice", "[]"),
]


@dataclass
class Request:
    submit: Submit
    accepted_as: int = -1  # its place among those accepted
    tokens: list[int] = field(default_factory=list)
    scored: int = 0
    reason: str = ""
    invalid: bool = False
    is_cancelled: bool = False


class Soak:
    def __init__(self, master: Master) -> None:
        self.master = master
        self.random = random.Random(SEED)
        self.prefixes = [self.tokens(self.random.randrange(64)) for _ in range(12)]
        self.active: dict[int, Request] = {}
        self.ended: list[Request] = []
        self.num_submitted = self.num_accepted = 0
        # By priority: the places of those with a first token.
        self.started: dict[int, set[int]] = {}
        self.most_overtaken = 0
        self.halfway_bytes = 0

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(3, VOCAB) for _ in range(count)]

    def run(self) -> None:
        while self.num_submitted < REQUESTS or self.active:
            self.submit_some()
            self.cancel_some()
            if not self.halfway_bytes and len(self.ended) >= REQUESTS // 2:
                self.halfway_bytes = memory_held()
            output = self.master.step()
            if output is not None:
                self.take(output)
            elif self.master.has_work or self.master.num_held:
                seconds = self.master.seconds_to_next
                is_woken = wait_readable(self.master.wake_fds, 30 if seconds is None else seconds)
                assert is_woken or seconds is not None, "a step or a grammar never came"

    def submit_some(self) -> None:
        room = min(self.random.randrange(14), REQUESTS - self.num_submitted)
        for _ in range(min(room, IN_FLIGHT_MAX - len(self.active))):
            self.num_submitted += 1
            submit = self.make(self.num_submitted)
            self.active[submit.handle] = Request(submit)
            self.master.obey(submit)

    def make(self, handle: int) -> Submit:
        prompt = self.random.choice(self.prefixes) + self.tokens(self.random.randrange(1, 24))
        return Submit(
            handle,
            prompt,
            self.sampling(),
            choice_index=self.random.randrange(3),
            cache_salt=self.random.choice([b"", b"one tenant", b"another"]),
            priority=self.random.choice([0, 0, 0, -1, 1]),
        )

    def sampling(self) -> SamplingParams:
        draw = self.random
        max_tokens = draw.choice([0, 1, 3, 8, 8, 16, 30])
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=draw.choice([0.0, 0.7, 1.5]),
            top_p=draw.choice([1.0, 0.9, 0.1]),
            top_k=draw.choice([0, 0, 5]),
            min_p=draw.choice([0.0, 0.0, 0.1]),
            seed=draw.randrange(2**32),
            repetition_penalty=draw.choice([1.0, 1.0, 1.2]),
            presence_penalty=draw.choice([0.0, 0.0, 1.0]),
            frequency_penalty=draw.choice([0.0, 0.0, -0.5]),
            logit_bias=draw.choice([{}, {}, {7: 3.0, 9: -100.0}]),
            stop_token_ids=draw.choice([(), (), tuple(range(5, 300))]),
            min_tokens=draw.choice([0, 0, min(2, max_tokens)]),
            logprobs=draw.choice([None, None, None, 0, 4]),
            prompt_logprobs=draw.choice([None] * 9 + [2]),
            grammar=self.grammar(),
        )

    def grammar(self) -> Grammar | None:
        if self.random.random() < 0.8:
            return None
        return self.random.choice(GRAMMARS if self.random.random() < 0.95 else BAD_GRAMMARS)

    def cancel_some(self) -> None:
        if self.active and self.random.random() < 0.3:
            handle = self.random.choice(list(self.active))
            self.active[handle].is_cancelled = True
            self.master.obey(Cancel([handle, 10**9]))

    def take(self, output: StepOutput) -> None:
        for handle in output.accepted:
            self.active[handle].accepted_as = self.num_accepted
            self.num_accepted += 1
        for report in output.prompt_logprobs:
            request = self.active[report.handle]
            assert not request.tokens and report.first_position == request.scored + 1
            request.scored += len(report.logprobs)
        for handle, index, token in zip(
            output.handles, output.first_indexes, output.token_ids, strict=True
        ):
            request = self.active[handle]
            assert index == len(request.tokens)
            if not index:
                self.note_first_token(request)
            request.tokens.append(token)
        for end in output.finished:
            request = self.active.pop(end.handle)
            request.reason, request.invalid = end.reason, end.invalid
            assert end.completion_tokens == len(request.tokens)
            self.ended.append(request)

    def note_first_token(self, request: Request) -> None:
        place, priority = request.accepted_as, request.submit.priority
        started = self.started.get(priority, set())
        overtaken = sum(other > place for other in started)
        self.most_overtaken = max(self.most_overtaken, overtaken)
        # Nobody overtakes by more than this, so what is far behind need not be kept.
        kept = {other for other in started if other > place - 10 * ROWS}
        self.started[priority] = kept | {place}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    write(Shape("LlamaForCausalLM", "llama", 32, 64, 1, 2, 1, 16, VOCAB), folder)
    shutil.copy(MODEL_DIR / "tokenizer.json", folder)
    return folder


@pytest.fixture
def master(folder: Path, tmp_path: Path) -> Iterator[Master]:
    before = set(psutil.Process().children(recursive=True))
    disk = tmp_path / "kv"
    load = Load("soak", str(folder), "cpu", "r1", settings=SETTINGS, kv_disk_folder=str(disk))
    built = build_executor(load, lambda step: nullcontext())
    master = Master(built.config, built.executor, grammars=built.grammars, tiers=built.tiers)
    master.prefetch.choice = ALWAYS  # so small a model is computed as quickly
    yield master
    assert sum(file.stat().st_size for file in disk.rglob("*")) <= SETTINGS["kv_disk_bytes"] + 8192
    master.close()
    assert not list(disk.glob("life-*")), "blocks are left on disk"
    assert set(psutil.Process().children(recursive=True)) <= before, "a process is left"


def test_everything_ends_and_nothing_is_kept(master: Master) -> None:
    soak = Soak(master)
    soak.run()
    assert memory_held() - soak.halfway_bytes < GROWTH_BYTES_MAX
    assert len(soak.ended) == REQUESTS
    for request in soak.ended:
        check_end(request)
    assert {request.reason for request in soak.ended} == {"stop", "length", "cancelled", "error"}
    # First come, first served within a priority: only neighbours in the batch may swap places.
    assert soak.most_overtaken <= 4 * ROWS

    scheduler, grammars = master._scheduler, master._grammars
    scheduler.check()
    settle(master)
    assert not master.has_work and not master.num_held
    assert master.prefetch.decisions["fetch"] > 100
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert scheduler._cache.num_available == SETTINGS["kv_blocks"] - 1
    assert grammars is not None
    assert grammars.num_in_flight == 0 and grammars.num_workers_started == 1
    master.obey(Submit(0, [1], SamplingParams(1)))  # tells the executor of the last releases
    master.step()
    while master.has_work:
        if master.step() is None:
            wait_readable(master.wake_fds, master.seconds_to_next)
    assert len(master._runner._executor._matchers) == 0  # type: ignore[attr-defined]


def memory_held() -> int:
    held: int = psutil.Process().memory_info().rss
    return held


def settle(master: Master) -> None:
    """Until the last step has landed, and nothing is put away any more."""
    while master.step() is not None or master.has_work or master.cache.num_copying:
        seconds = master.seconds_to_next
        wait_readable(master.wake_fds, 1.0 if seconds is None else seconds)
    master.cache.check([])


def check_end(request: Request) -> None:
    sampling = request.submit.sampling
    assert len(request.tokens) <= sampling.max_tokens
    if sampling.grammar in BAD_GRAMMARS:
        assert request.is_cancelled or (request.reason == "error" and request.invalid)
        return
    assert request.reason != "error", request
    if request.reason == "cancelled":
        assert request.is_cancelled
        return
    if sampling.prompt_logprobs is not None:
        assert request.scored == len(request.submit.prompt_token_ids) - 1
    if request.reason == "length":
        assert len(request.tokens) == sampling.max_tokens
    if not sampling.grammar:
        early = request.tokens[: sampling.min_tokens]
        assert not set(early) & {2, *sampling.stop_token_ids}
