"""Random requests for one small engine, determined by SEED, and what must come of each.

Lengths, sampling, cancellations, shared prefixes, priorities, log probabilities and grammars, good
and bad, all in one batch.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from deepflow.core.sampling import Grammar, SamplingParams
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Cancel, StepOutput, Submit
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.scheduler.sequence import NO_POPULATE

SEED = 20261121
IN_FLIGHT_MAX = 250
ROWS = 16
VOCAB = 1536
# Now and then so many in a row want long answers that some are put aside for others.
WAVE_EVERY, WAVE_REQUESTS = 2500, 2 * ROWS
WAVE_TOKENS = 100
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
    is_fetched_for: bool = False


class Soak:
    def __init__(self, master: Master, requests: int, at_half: Callable[[], None]) -> None:
        self.master = master
        self.requests = requests
        self.at_half: Callable[[], None] | None = at_half
        self.random = random.Random(SEED)
        self.prefixes = [self.tokens(self.random.randrange(64)) for _ in range(12)]
        self.active: dict[int, Request] = {}
        self.ended: list[Request] = []
        self.num_submitted = self.num_accepted = 0
        # By priority: the places of those with a first token.
        self.started: dict[int, set[int]] = {}
        self.most_overtaken = self.num_measured = 0
        self.preemptions = 0

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(3, VOCAB) for _ in range(count)]

    def run(self) -> None:
        while self.num_submitted < self.requests or self.active:
            self.submit_some()
            self.cancel_some()
            if self.at_half is not None and len(self.ended) >= self.requests // 2:
                self.at_half()
                self.at_half = None
            output = self.master.step()
            self.note_fetches()
            if output is not None:
                self.take(output)
            elif self.master.has_work or self.master.num_held:
                seconds = self.master.seconds_to_next
                is_woken = wait_readable(self.master.wake_fds, 30 if seconds is None else seconds)
                assert is_woken or seconds is not None, "a step or a grammar never came"

    def submit_some(self) -> None:
        room = min(self.random.randrange(14), self.requests - self.num_submitted)
        for _ in range(min(room, IN_FLIGHT_MAX - len(self.active))):
            self.num_submitted += 1
            submit = self.make(self.num_submitted)
            self.active[submit.handle] = Request(submit)
            self.master.obey(submit)

    def make(self, handle: int) -> Submit:
        prompt = self.random.choice(self.prefixes) + self.tokens(self.random.randrange(1, 24))
        is_in_wave = handle % WAVE_EVERY < WAVE_REQUESTS
        return Submit(
            handle,
            prompt,
            self.long_answer() if is_in_wave else self.sampling(),
            choice_index=self.random.randrange(3),
            cache_salt=self.random.choice([b"", b"one tenant", b"another"]),
            priority=-2 if is_in_wave else self.random.choice([0, 0, 0, -1, 1]),
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

    def long_answer(self) -> SamplingParams:
        return SamplingParams(WAVE_TOKENS, seed=self.random.randrange(2**32), ignore_eos=True)

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
        self.preemptions += output.preemptions
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

    def note_fetches(self) -> None:
        """Nobody stands behind a fetch: how many pass depends on the disk."""
        if self.master.cache.num_arriving:
            for sequence in self.master._scheduler._waiting:
                if sequence.populate != NO_POPULATE:
                    self.active[sequence.handle].is_fetched_for = True

    def note_first_token(self, request: Request) -> None:
        place, priority = request.accepted_as, request.submit.priority
        started = self.started.get(priority, set())
        if not request.is_fetched_for:
            overtaken = sum(other > place for other in started)
            self.most_overtaken = max(self.most_overtaken, overtaken)
            self.num_measured += 1
        # Nobody overtakes by more than this, so what is far behind need not be kept.
        kept = {other for other in started if other > place - 10 * ROWS}
        self.started[priority] = kept | {place}


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
