"""One job on a link: order, window, credits, and who is woken when."""

import asyncio
from collections.abc import Sequence

import pytest

from deepflow.errors import Cancelled, DeepFlowError, Internal, Unavailable
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.links.run import JobRun


class Sink:
    """An answer that a test can make slow."""

    def __init__(self) -> None:
        self.is_slow = False
        self.texts: list[str] = []
        self.heard: list[str] = []

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        self.texts += texts

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        self.heard.append("details")

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        self.heard.append("prompt")

    def tool_call(self, delta: jobs.ToolCallDelta) -> None:
        self.heard.append("call")

    def finished(self, choice: jobs.ChoiceFinished) -> None:
        pass

    def flush(self) -> bool:
        return not self.is_slow


class Stand:
    def __init__(self, *, window: int = 8, choices: int = 1, max_tokens: int = 0) -> None:
        self.sent: list[jobs.JobsRequest] = []
        self.sink = Sink()
        job = jobs.Job(sampling=types.SamplingParams(max_tokens=max_tokens or None))
        submit = jobs.SubmitJob(handle=7, job=job, token_window=window)
        self.run = JobRun(submit, choices, self.sink, self.sent.append)

    def take(self, first: int, count: int, choice: int = 0) -> None:
        """One batch with tokens of one choice."""
        if self.run.take(choice, first, ["t"] * count, list(range(count))):
            self.run.flush()

    def finish(self, choice: int = 0) -> None:
        if self.run.finish(jobs.ChoiceFinished(handle=7, choice_index=choice)):
            self.run.flush()

    @property
    def credits(self) -> list[tuple[int, int]]:
        return [(r.credit.choice_index, r.credit.delivered_tokens) for r in self.sent]


def test_credit_is_sent_when_half_a_window_was_passed_on() -> None:
    stand = Stand()
    for first in range(12):
        stand.take(first, 1)
    assert stand.credits == [(0, 4), (0, 8), (0, 12)]


def test_a_job_that_fits_its_window_needs_no_credit() -> None:
    stand = Stand(max_tokens=8)
    stand.take(0, 8)
    assert stand.credits == []


def test_every_choice_is_credited_by_itself() -> None:
    stand = Stand(choices=2)
    stand.take(0, 3, choice=0)
    stand.take(0, 3, choice=1)
    stand.take(3, 2, choice=1)
    stand.take(5, 3, choice=1)
    assert stand.credits == [(1, 8)]


def test_a_slow_client_gets_credit_only_when_it_has_caught_up() -> None:
    stand = Stand()
    stand.sink.is_slow = True
    stand.take(0, 8)
    assert stand.credits == []
    stand.run.passed_on()
    assert stand.credits == [(0, 8)]


@pytest.mark.parametrize(("first", "count"), [(1, 1), (0, 9)])
def test_a_gap_or_an_overrun_fails_the_job(first: int, count: int) -> None:
    stand = Stand()
    stand.take(first, count)
    assert isinstance(stand.run.failure, Internal)
    assert stand.sink.texts == []


def test_a_choice_that_does_not_exist_or_ends_twice_fails_the_job() -> None:
    stand = Stand(choices=2)
    stand.finish(0)
    stand.finish(0)
    assert isinstance(stand.run.failure, Internal)
    other = Stand()
    other.take(0, 1, choice=3)
    assert isinstance(other.run.failure, Internal)


def test_the_first_failure_counts_and_a_complete_answer_cannot_fail() -> None:
    stand = Stand()
    stand.run.fail(Unavailable("gone"))
    stand.run.leave()
    assert isinstance(stand.run.failure, Unavailable)
    complete = Stand()
    complete.finish()
    complete.run.leave()
    assert complete.run.failure is None and complete.run.is_over


def test_what_clients_ask_for_reaches_the_answer() -> None:
    stand = Stand()
    prompt = jobs.ChoicePrompt(token_ids=[1, 2], token_bytes=[b"a", b"b"])
    assert stand.run.show_prompt(prompt)
    stand.run.describe(0, jobs.TokenDetails(token_bytes=[b"t"], top_counts=[0]), [-1.0])
    stand.take(0, 1)
    stand.run.call_tool(jobs.ToolCallDelta(call_index=0, name="f"))
    assert stand.sink.heard == ["prompt", "details", "call"] and stand.run.failure is None


@pytest.mark.parametrize(
    "details",
    [
        jobs.TokenDetails(token_bytes=[b"a", b"b"], top_counts=[0, 0]),
        jobs.TokenDetails(token_bytes=[b"a"]),
        jobs.TokenDetails(token_bytes=[b"a"], top_counts=[1]),
        jobs.TokenDetails(token_bytes=[b"a"], top_counts=[0], top_logprobs=[-1.0]),
    ],
)
def test_details_that_do_not_fit_fail_the_job_alone(details: jobs.TokenDetails) -> None:
    stand = Stand()
    stand.run.describe(0, details, [-1.0])
    assert isinstance(stand.run.failure, Internal)
    assert stand.sink.heard == []


@pytest.mark.parametrize(
    "prompt",
    [
        jobs.ChoicePrompt(),
        jobs.ChoicePrompt(choice_index=1, token_ids=[1], token_bytes=[b"a"]),
        jobs.ChoicePrompt(token_ids=[1, 2], token_bytes=[b"a"]),
        jobs.ChoicePrompt(token_ids=[1, 2], token_bytes=[b"a", b"b"], logprobs=[-1, -1]),
        jobs.ChoicePrompt(token_ids=[1, 2], token_bytes=[b"a", b"b"], logprobs=[-1], ranks=[1]),
    ],
)
def test_a_prompt_that_does_not_fit_fails_the_job_alone(prompt: jobs.ChoicePrompt) -> None:
    stand = Stand()
    assert not stand.run.show_prompt(prompt)
    assert isinstance(stand.run.failure, Internal)
    assert stand.sink.heard == []


def test_a_prompt_comes_before_the_tokens_and_a_call_before_the_end() -> None:
    late = Stand()
    late.take(0, 1)
    assert not late.run.show_prompt(jobs.ChoicePrompt(token_ids=[1], token_bytes=[b"a"]))
    assert isinstance(late.run.failure, Internal)
    over = Stand(choices=2)
    over.finish(0)
    over.run.call_tool(jobs.ToolCallDelta(choice_index=0))
    assert isinstance(over.run.failure, Internal)


async def test_admission_waits_for_admission() -> None:
    stand = Stand()
    waiting = asyncio.create_task(stand.run.admission(5.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    stand.run.admit()
    await waiting


@pytest.mark.parametrize("failure", [Unavailable("no room"), Cancelled("left")])
async def test_admission_raises_what_ended_the_job(failure: DeepFlowError) -> None:
    stand = Stand()
    waiting = asyncio.create_task(stand.run.admission(5.0))
    await asyncio.sleep(0)
    stand.run.fail(failure)
    with pytest.raises(type(failure)):
        await waiting


async def test_admission_has_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        await Stand().run.admission(0.01)


async def test_a_job_that_waits_for_its_turn_has_no_such_deadline() -> None:
    stand = Stand()
    stand.run.queue()
    asyncio.get_running_loop().call_later(0.05, stand.run.admit)
    await stand.run.admission(0.01)
    assert stand.run.admitted


async def test_a_handler_that_was_cancelled_does_not_hurt_the_reader() -> None:
    stand = Stand()
    stand.sink.is_slow = True
    waiting = asyncio.create_task(stand.run.arrival())
    await asyncio.sleep(0)
    waiting.cancel()
    stand.take(0, 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
