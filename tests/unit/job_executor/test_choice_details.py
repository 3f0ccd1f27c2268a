"""What a choice sends beside its tokens, for clients that asked: alternatives and the prompt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import Cancelled, Internal, InvalidRequest
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs import choice as choice_module
from services.job_executor.jobs import outbox as outbox_module
from services.job_executor.jobs import returned_prompt
from services.job_executor.jobs.choice import Choice
from services.job_executor.jobs.delivery import deliver
from services.job_executor.jobs.returned_prompt import ReturnedPrompt
from services.job_executor.tokenizer.token_bytes import TokenBytes
from tests.integration.job_executor_rig import TokenDetail, split_details
from tests.unit.job_executor.test_choice import FakeJob, Letters, job, sent

__all__ = ["job"]

PROMPT = [3, 4, 5]
SPELL = TokenBytes(str, {}, lambda token: token.encode())


def make_choice(
    job: Any,
    *,
    window: int = 0,
    stops: tuple[str, ...] = (),
    min_tokens: int = 0,
    prompt_logprobs: bool | None = None,
    resume: tuple[int, ...] = (),
) -> Choice:
    returned = None
    if prompt_logprobs is not None:
        returned = ReturnedPrompt(PROMPT, "prompt", SPELL, wants_logprobs=prompt_logprobs)
    choice = Choice(
        job,
        0,
        PROMPT,
        detokenizer=Letters(),
        stops=list(stops),
        window=window,
        min_tokens=min_tokens,
        details=SPELL,
        returned=returned,
    )
    choice.resume(list(resume))
    choice.open()
    return choice


def told(first: int, count: int) -> tasks_pb2.PromptLogprobs:
    return tasks_pb2.PromptLogprobs(
        handle=1, first_position=first, logprobs=[-1.0] * count, ranks=[1] * count
    )


def top(token_id: int) -> tuple[bytes, list[tuple[int, bytes, float]]]:
    """A token that had itself as the only alternative."""
    content = str(token_id).encode()
    return content, [(token_id, content, -0.5)]


def take(choice: Choice, *token_ids: int) -> None:
    for token_id in token_ids:
        index = len(choice.log.token_ids)
        choice.alternatives(index, [token_id], [-0.5])
        choice.take(index, token_id, -0.5)


def test_alternatives_leave_with_their_tokens_as_credit_allows(job: FakeJob) -> None:
    choice = make_choice(job, window=2)
    take(choice, 0, 1, 2)
    (details,) = sent(job).details
    assert split_details(details) == [top(0), top(1)]
    choice.credit(2)
    (details,) = sent(job).details
    assert split_details(details) == [top(2)]


def test_a_long_answer_leaves_in_parts(job: FakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "DETAILED_TOKENS_MAX", 2)
    choice = make_choice(job)
    take(choice, 0, 1, 2)
    choice.finish(types.FINISH_REASON_STOP)
    first, second = sent(job), sent(job)
    assert (list(first.token_ids), list(second.token_ids)) == ([0, 1], [2])
    assert [len(batch.finished) for batch in (first, second)] == [0, 1]
    assert [split_details(batch.details[0]) for batch in (first, second)] == [
        [top(0), top(1)],
        [top(2)],
    ]
    assert job.outbox.take() == [] and job.num_sent == 1


def test_a_resumed_choice_tells_only_of_what_is_new(job: FakeJob) -> None:
    choice = make_choice(job, resume=(7, 8))
    choice.take(2, 0, 0.0)  # nothing is known of this one
    take(choice, 1)
    batch = sent(job)
    assert list(batch.first_token_indexes) == [2]
    assert split_details(batch.details[0]) == [(b"0", []), top(1)]


def test_what_came_already_is_not_told_again(job: FakeJob) -> None:
    choice = make_choice(job)
    take(choice, 0)
    choice.alternatives(0, [9], [-9.0])
    choice.take(0, 0, -0.5)
    take(choice, 1)
    assert split_details(sent(job).details[0]) == [top(0), top(1)]


def test_alternatives_are_part_of_the_logs_memory(job: FakeJob) -> None:
    choice = make_choice(job)
    plain = make_choice(job)
    take(choice, 0, 1)
    for index in range(2):
        plain.take(index, index, 0.0)
    assert choice.log.num_bytes > plain.log.num_bytes


def test_the_prompt_comes_once_and_before_the_first_token(job: FakeJob) -> None:
    choice = make_choice(job, prompt_logprobs=True)
    choice.prompt_logprobs(told(1, 1))
    choice.prompt_logprobs(told(2, 1))
    assert job.outbox.take() == []
    take(choice, 0)
    batch = sent(job)
    (prompt,) = batch.prompts
    assert (prompt.handle, list(prompt.token_ids), prompt.text) == (9, PROMPT, "prompt")
    assert len(prompt.logprobs) == 2 and list(batch.token_ids) == [0]
    take(choice, 1)
    assert not sent(job).prompts


def test_an_answer_without_tokens_has_its_prompt_too(job: FakeJob) -> None:
    choice = make_choice(job, prompt_logprobs=False)
    choice.finished(tasks_pb2.TaskFinished(handle=1, reason=types.FINISH_REASON_LENGTH))
    batch = sent(job)
    assert len(batch.prompts) == len(batch.finished) == 1
    usage = batch.finished[0].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 0)


@pytest.mark.parametrize("pieces", [[], [told(1, 1)], [told(2, 1)], [told(1, 1), told(1, 2)]])
@pytest.mark.parametrize("has_token", [True, False])
def test_a_prompt_with_gaps_is_a_failure(
    job: FakeJob, pieces: list[tasks_pb2.PromptLogprobs], has_token: bool
) -> None:
    choice = make_choice(job, prompt_logprobs=True)
    for piece in pieces:
        choice.prompt_logprobs(piece)
    if has_token:
        take(choice, 0)
    else:
        choice.finished(tasks_pb2.TaskFinished(handle=1, reason=types.FINISH_REASON_LENGTH))
    for response in job.outbox.take():
        assert not response.tokens.prompts and not response.tokens.finished
    assert job.failures and isinstance(job.failures[0], Internal)


def test_a_failed_choice_ends_without_the_prompt_that_never_came(job: FakeJob) -> None:
    choice = make_choice(job, prompt_logprobs=True)
    choice.fail(Internal("gone"))
    batch = sent(job)
    assert not batch.prompts and len(batch.finished) == 1


def test_nobody_reads_the_prompt_of_a_cancelled_choice(job: FakeJob) -> None:
    choice = make_choice(job, prompt_logprobs=False)
    take(choice, 0)
    choice.abandon(Cancelled("gone"))
    batch = sent(job)
    assert not batch.prompts and len(batch.finished) == 1


def test_a_prompt_that_no_message_can_carry_replaces_the_end(
    job: FakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returned_prompt, "PROMPT_BYTES_MAX", 5)
    choice = make_choice(job, prompt_logprobs=False)
    choice.finish(types.FINISH_REASON_LENGTH)
    assert job.outbox.take() == []
    (error,) = job.failures
    assert isinstance(error, InvalidRequest)
    choice.fail(error)  # as the job does
    (end,) = sent(job).finished
    assert end.reason == types.FINISH_REASON_ERROR


def test_a_task_placed_anew_tells_its_prompt_anew(job: FakeJob) -> None:
    class Link:
        id = "te-0"
        incarnation = 1

        def submit(self, task: tasks_pb2.Task, owner: Any, tokens: int) -> int:
            return 1

    choice = make_choice(job, prompt_logprobs=True)
    link: Any = Link()
    choice.place(link, tasks_pb2.Task(), 1)
    choice.prompt_logprobs(told(1, 1))
    choice.place(link, tasks_pb2.Task(), 1)
    choice.prompt_logprobs(told(1, 2))
    take(choice, 0)
    assert len(sent(job).prompts) == 1 and not job.failures


def test_large_extras_do_not_share_a_message(job: FakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "EXTRA_BYTES_MAX", 10)
    for _ in range(3):
        take(make_choice(job, prompt_logprobs=False), 0)
    batches = [response.tokens for response in job.outbox.take()]
    assert [len(batch.prompts) for batch in batches] == [1, 1, 1]
    assert [list(batch.token_ids) for batch in batches] == [[0], [0], [0]]
    assert [batch.details[0].entry for batch in batches] == [0, 0, 0]


def test_a_stop_string_waits_for_the_least_tokens(job: FakeJob) -> None:
    choice = make_choice(job, stops=("a",), min_tokens=3)
    take(choice, 0, 0, 1, 0)
    batch = sent(job)
    (end,) = batch.finished
    assert end.reason == types.FINISH_REASON_STOP
    assert "".join(batch.texts) == "aab" and end.usage.completion_tokens == 4


def test_columns_find_the_tasks_that_asked(job: FakeJob) -> None:
    asked = make_choice(job, prompt_logprobs=True)
    other = make_choice(job, prompt_logprobs=False)
    batch = tasks_pb2.TaskTokenBatch(
        prompt_logprobs=[told(1, 2), tasks_pb2.PromptLogprobs(handle=3)],
        handles=[2, 1, 1, 3],
        first_token_indexes=[0, 0, 1, 0],
        token_counts=[1, 1, 1, 1],
        token_ids=[6, 7, 8, 9],
        logprobs=[-0.5] * 4,
        top_positions=[1, 2, 3],
        top_counts=[1, 1, 1],
        top_token_ids=[7, 8, 9],
        top_logprobs=[-0.5] * 3,
    )
    tasks: dict[int, Any] = {1: asked, 2: other}  # nobody waits for 3 any more
    deliver(batch, tasks)
    sent_batch: jobs_pb2.JobTokenBatch = sent(job)
    assert [split_details(details) for details in sent_batch.details] == [
        [(b"6", [])],
        [top(7), top(8)],
    ]


def test_alternatives_that_belong_to_nothing_break_the_stream(job: FakeJob) -> None:
    batch = tasks_pb2.TaskTokenBatch(
        handles=[1],
        first_token_indexes=[0],
        token_counts=[1],
        token_ids=[6],
        top_positions=[0],
        top_counts=[1],
        top_token_ids=[7, 8],
        top_logprobs=[-0.5],
    )
    tasks: dict[int, Any] = {1: make_choice(job)}
    with pytest.raises(ValueError, match="differ in length"):
        deliver(batch, tasks)


ENTRIES = st.lists(
    st.tuples(st.integers(1, 3), st.lists(st.none() | st.integers(0, 3), max_size=4)), max_size=6
)


@given(ENTRIES)
def test_tokens_and_alternatives_arrive_as_they_were_told(
    entries: list[tuple[int, list[int | None]]],
) -> None:
    """Whatever the shapes: entries of several tokens, tokens with and without alternatives."""
    jobs = {1: FakeJob(), 2: FakeJob()}  # nobody waits for 3 any more
    tasks: dict[int, Any] = {handle: make_choice(jobs[handle]) for handle in jobs}
    expected: dict[int, list[TokenDetail]] = {1: [], 2: [], 3: []}
    batch = tasks_pb2.TaskTokenBatch()
    for handle, tokens in entries:
        told_before = expected[handle]
        batch.handles.append(handle)
        batch.first_token_indexes.append(len(told_before))
        batch.token_counts.append(len(tokens))
        for num_tops in tokens:
            if num_tops is not None:
                batch.top_positions.append(len(batch.token_ids))
                batch.top_counts.append(num_tops)
                batch.top_token_ids.extend(range(num_tops))
                batch.top_logprobs.extend([-0.5] * num_tops)
            token_id = len(told_before)
            batch.token_ids.append(token_id)
            tops = [(i, b"%d" % i, -0.5) for i in range(num_tops or 0)]
            told_before.append((b"%d" % token_id, tops))
    deliver(batch, tasks)
    for handle in jobs:
        answer = sent(jobs[handle])
        assert not jobs[handle].failures
        assert list(answer.token_ids) == list(range(len(expected[handle])))
        assert [it for part in answer.details for it in split_details(part)] == expected[handle]
