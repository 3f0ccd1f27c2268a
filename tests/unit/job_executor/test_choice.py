"""One choice between its task executor and its gateway, without either."""

from typing import Any

import pytest

from deepflow.errors import Cancelled, DeepFlowError, Internal, Unavailable
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.choice import Choice
from services.job_executor.jobs.delivery import deliver
from services.job_executor.jobs.outbox import Outbox


class Letters:
    """Token i is the i-th letter."""

    def push(self, token_id: int) -> str:
        return chr(ord("a") + token_id)

    def flush(self) -> str:
        return ""


class FakeJob:
    handle = 9

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.failures: list[DeepFlowError] = []
        self.num_sent = 0

    def choice_called(self, choice: Choice) -> None: ...

    def choice_accepted(self) -> None: ...

    def choice_sent(self) -> None:
        self.num_sent += 1

    def choice_failed(self, choice: Choice, error: DeepFlowError, where: str = "") -> None:
        self.failures.append(error)


@pytest.fixture
def job() -> FakeJob:
    return FakeJob()


def make_choice(job: Any, *, window: int = 0, stops: tuple[str, ...] = ()) -> Choice:
    choice = Choice(job, 0, [1, 2], detokenizer=Letters(), stops=list(stops), window=window)
    choice.open()
    return choice


def sent(job: FakeJob) -> jobs_pb2.JobTokenBatch:
    responses = job.outbox.take()
    return responses[0].tokens if responses else jobs_pb2.JobTokenBatch()


def test_tokens_of_several_steps_leave_as_one_entry(job: FakeJob) -> None:
    choice = make_choice(job)
    for index in range(3):
        choice.take(index, index, -0.5)
    batch = sent(job)
    assert (list(batch.handles), list(batch.token_counts)) == ([9], [3])
    assert (list(batch.token_ids), list(batch.texts)) == ([0, 1, 2], ["a", "b", "c"])
    assert list(batch.logprobs) == [-0.5] * 3
    choice.take(3, 3, 0.0)
    assert list(sent(job).first_token_indexes) == [3]


def test_nothing_to_send_is_no_message(job: FakeJob) -> None:
    make_choice(job)
    assert job.outbox.take() == []


def test_the_end_waits_for_the_last_credit(job: FakeJob) -> None:
    choice = make_choice(job, window=2)
    for index in range(3):
        choice.take(index, index, 0.0)
    choice.finish(types.FINISH_REASON_LENGTH)
    assert len(sent(job).token_ids) == 2 and job.num_sent == 0
    assert job.outbox.take() == []
    choice.credit(1)
    batch = sent(job)
    assert list(batch.token_ids) == [2]
    assert [end.usage.completion_tokens for end in batch.finished] == [3]
    assert job.num_sent == 1


def test_credit_never_closes(job: FakeJob) -> None:
    choice = make_choice(job, window=2)
    choice.credit(5)
    choice.credit(1)
    for index in range(7):
        choice.take(index, index, 0.0)
    assert len(sent(job).token_ids) == 7


def test_a_repeated_token_is_dropped_and_a_missing_one_is_a_failure(job: FakeJob) -> None:
    choice = make_choice(job)
    choice.take(0, 0, 0.0)
    choice.take(0, 0, 0.0)
    assert len(choice.log.token_ids) == 1 and not job.failures
    choice.take(2, 2, 0.0)
    assert isinstance(job.failures[0], Internal)


def test_a_stop_string_ends_the_choice_at_its_last_token(job: FakeJob) -> None:
    choice = make_choice(job, stops=("bc",))
    for index in range(3):
        choice.take(index, index, 0.0)
    batch = sent(job)
    assert list(batch.texts) == ["a", "", ""]
    (end,) = batch.finished
    assert (end.reason, end.text_tail) == (types.FINISH_REASON_STOP, "")
    assert end.usage.completion_tokens == 3


def test_abandoned_tokens_are_not_sent(job: FakeJob) -> None:
    choice = make_choice(job, window=1)
    choice.take(0, 0, 0.0)
    choice.take(1, 1, 0.0)
    choice.abandon(Cancelled("gone"))
    batch = sent(job)
    assert not batch.token_ids
    assert [end.reason for end in batch.finished] == [types.FINISH_REASON_CANCELLED]


def test_a_task_that_its_executor_cancelled_is_lost(job: FakeJob) -> None:
    end = tasks_pb2.TaskFinished(handle=1, reason=types.FINISH_REASON_CANCELLED)
    make_choice(job).finished(end)
    assert isinstance(job.failures[0], Unavailable)


def test_columns_reach_their_choices_in_order(job: FakeJob) -> None:
    one, two = make_choice(job), make_choice(job)
    batch = tasks_pb2.TaskTokenBatch(
        handles=[1, 2, 3, 1],
        first_token_indexes=[0, 0, 0, 2],
        token_counts=[2, 1, 1, 1],
        token_ids=[0, 1, 5, 9, 2],
        finished=[tasks_pb2.TaskFinished(handle=2, reason=types.FINISH_REASON_STOP)],
    )
    tasks: dict[int, Any] = {1: one, 2: two}  # nobody waits for 3 any more
    deliver(batch, tasks)
    assert (list(one.log.token_ids), list(two.log.token_ids)) == ([0, 1, 2], [5])
    assert two.log.finish is not None and list(tasks) == [1]
