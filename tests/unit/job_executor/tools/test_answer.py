"""Calls between the text of a choice and the messages to its gateway."""

from typing import Any

import pytest

from deepflow.errors import Cancelled
from deepflow.v1 import jobs_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.choice import Choice
from services.job_executor.jobs.outbox import Outbox
from services.job_executor.tools.answer import AnswerCalls, TagDetokenizer
from services.job_executor.tools.hermes import HermesParser

PIECES = [
    *(
        "Well",
        "<tool_",
        'call>{"name"',
        ': "f", "arg',
        'uments": {"a',
        '": 1}',
        "}",
        "</tool_call>",
    ),
    *("\n<tool_call>", '{"name": "g", "arguments": {}}', "</tool_call>", "\n", "so"),
]
F_AT, F_ENDS_AT, G_AT = 4, 5, 9


class Pieces:
    """Token i stands for the i-th piece."""

    def push(self, token_id: int) -> str:
        return PIECES[token_id]

    def flush(self) -> str:
        return ""


class FakeJob:
    handle = 9

    def __init__(self) -> None:
        self.outbox = Outbox()

    def choice_called(self, choice: Choice) -> None: ...

    def choice_accepted(self) -> None: ...

    def choice_sent(self) -> None: ...

    def choice_failed(self, choice: Choice, error: Any, where: str = "") -> None:
        raise error


def make_choice(
    job: FakeJob,
    window: int = 0,
    *,
    stops: bool = False,
    tells: bool = True,
    is_forced: bool = False,
) -> Choice:
    calls = AnswerCalls(
        HermesParser(),
        handle=9,
        choice_index=0,
        stops_after_call=stops,
        tells_calls=tells,
        is_forced=is_forced,
    )
    choice = Choice(job, 0, [1], detokenizer=Pieces(), stops=[], window=window, calls=calls)
    choice.open()
    return choice


def take(choice: Choice, first: int, end: int) -> None:
    for index in range(first, end):
        choice.take(index, index, 0.0)


def sent(job: FakeJob) -> jobs_pb2.JobTokenBatch:
    responses = job.outbox.take()
    return responses[0].tokens if responses else jobs_pb2.JobTokenBatch()


@pytest.fixture
def job() -> FakeJob:
    return FakeJob()


def test_calls_leave_the_text_and_come_beside_it(job: FakeJob) -> None:
    choice = make_choice(job)
    take(choice, 0, len(PIECES))
    choice.finish(types.FINISH_REASON_STOP)
    batch = sent(job)
    assert "".join(batch.texts) == "Well\nso" and len(batch.token_ids) == len(PIECES)
    first, second = batch.tool_calls
    assert (first.call_index, first.name, first.arguments) == (0, "f", '{"a": 1}')
    assert (second.call_index, second.name, second.arguments) == (1, "g", "{}")
    assert (first.handle, first.choice_index) == (9, 0)
    assert first.id.startswith("call_") and first.id != second.id
    (end,) = batch.finished
    assert end.reason == types.FINISH_REASON_TOOL_CALLS
    assert end.usage.completion_tokens == len(PIECES)


def test_arguments_stream_and_only_their_first_piece_is_named(job: FakeJob) -> None:
    choice = make_choice(job)
    take(choice, 0, F_AT + 1)
    (begun,) = sent(job).tool_calls
    assert (begun.name, begun.arguments) == ("f", '{"a')
    take(choice, F_AT + 1, F_AT + 2)
    (piece,) = sent(job).tool_calls
    assert (piece.id, piece.name, piece.arguments) == ("", "", '": 1}')


def test_calls_wait_for_the_credit_of_their_tokens(job: FakeJob) -> None:
    choice = make_choice(job, window=F_AT)
    take(choice, 0, len(PIECES))
    assert not sent(job).tool_calls
    choice.credit(2)
    assert [delta.arguments for delta in sent(job).tool_calls] == ['{"a": 1}']
    choice.credit(len(PIECES))
    assert [delta.name for delta in sent(job).tool_calls] == ["g"]


def test_one_call_can_end_the_answer(job: FakeJob) -> None:
    choice = make_choice(job, stops=True)
    take(choice, 0, F_ENDS_AT + 2)
    batch = sent(job)
    assert [end.reason for end in batch.finished] == [types.FINISH_REASON_TOOL_CALLS]
    assert [delta.name for delta in batch.tool_calls] == ["f"]


def test_a_call_that_the_client_named_ends_as_at_openai(job: FakeJob) -> None:
    choice = make_choice(job, tells=False)
    take(choice, 0, len(PIECES))
    choice.finish(types.FINISH_REASON_STOP)
    assert sent(job).finished[0].reason == types.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("num_tokens", "reason"),
    [(len(PIECES), types.FINISH_REASON_LENGTH), (F_AT + 1, types.FINISH_REASON_LENGTH)],
)
def test_an_answer_that_was_cut_says_so(job: FakeJob, num_tokens: int, reason: Any) -> None:
    choice = make_choice(job)
    take(choice, 0, num_tokens)
    choice.finish(reason)
    assert sent(job).finished[0].reason == reason


def test_a_call_that_is_none_is_text_at_the_end(job: FakeJob) -> None:
    choice = make_choice(job)
    take(choice, 0, 4)
    choice.finish(types.FINISH_REASON_STOP)
    batch = sent(job)
    text = "".join(batch.texts) + batch.finished[0].text_tail
    assert text == "".join(PIECES[:4]) and not batch.tool_calls
    assert batch.finished[0].reason == types.FINISH_REASON_STOP


@pytest.mark.parametrize("num_tokens", [2, 4, F_AT + 1, G_AT])
def test_a_forced_answer_that_was_cut_shows_no_markup(job: FakeJob, num_tokens: int) -> None:
    choice = make_choice(job, is_forced=True)
    take(choice, 0, num_tokens)
    choice.finish(types.FINISH_REASON_LENGTH)
    batch = sent(job)
    assert "".join(batch.texts) + batch.finished[0].text_tail == ""
    assert [call.name for call in batch.tool_calls] == (["f"] if num_tokens > F_AT else [])
    assert len(batch.token_ids) == num_tokens


def test_a_resumed_choice_tells_only_what_is_new(job: FakeJob) -> None:
    choice = make_choice(job)
    choice.resume(list(range(F_AT + 1)))
    take(choice, F_AT + 1, len(PIECES))
    first, second = sent(job).tool_calls
    assert (first.id, first.name, first.arguments) == ("", "", '": 1}')
    assert second.name == "g"


def test_an_abandoned_choice_tells_nothing_more(job: FakeJob) -> None:
    choice = make_choice(job, window=1)
    take(choice, 0, F_AT + 1)
    choice.abandon(Cancelled("gone"))
    batch = sent(job)
    assert not batch.tool_calls
    assert [end.reason for end in batch.finished] == [types.FINISH_REASON_CANCELLED]


def test_tags_show_where_other_special_tokens_do_not() -> None:
    class Silent(Pieces):
        def push(self, token_id: int) -> str:
            return ""

        def flush(self) -> str:
            return "�"

    detokenizer = TagDetokenizer(Silent(), {7: "<tool_call>"})
    assert detokenizer.push(6) == ""
    assert detokenizer.push(7) == "�<tool_call>", "what is incomplete before it comes before it"
    assert detokenizer.flush() == "�"
