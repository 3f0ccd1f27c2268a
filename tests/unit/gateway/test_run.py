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

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        self.texts += texts

    def finished(self, choice: jobs.ChoiceFinished) -> None:
        pass

    def flush(self) -> bool:
        return not self.is_slow


class Stand:
    def __init__(self, *, window: int = 8, choices: int = 1, max_tokens: int = 0) -> None:
        self.sent: list[jobs.JobsRequest] = []
        self.sink = Sink()
        job = jobs.Job(sampling=types.SamplingParams(max_tokens=max_tokens))
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


async def test_a_handler_that_was_cancelled_does_not_hurt_the_reader() -> None:
    stand = Stand()
    stand.sink.is_slow = True
    waiting = asyncio.create_task(stand.run.arrival())
    await asyncio.sleep(0)
    waiting.cancel()
    stand.take(0, 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
