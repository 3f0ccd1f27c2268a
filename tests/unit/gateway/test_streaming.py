"""Events as bytes, whole answers, usage: what a client reads."""

import json
from typing import Any

from deepflow.errors import Unavailable, to_proto
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.streaming.events import DONE, EventFormat
from services.gateway.streaming.live import LiveAnswer
from services.gateway.streaming.usage import UsageSum
from services.gateway.streaming.whole import WholeAnswer

AWKWARD = 'a"b\\c\n\t\u2028é\U0001f600\x00</script>'


def live(
    *, is_chat: bool = True, choices: int = 1, usage: bool = False, ids: bool = False
) -> LiveAnswer:
    form = EventFormat(
        is_chat=is_chat,
        answer_id="id-1",
        created=5,
        model='a "model"',
        choices=choices,
        include_usage=usage,
    )
    return LiveAnswer(form, UsageSum(choices), include_usage=usage, with_ids=ids)


def finished(
    choice: int = 0, reason: types.FinishReason.ValueType = types.FINISH_REASON_STOP, tail: str = ""
) -> jobs.ChoiceFinished:
    usage = types.Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    return jobs.ChoiceFinished(choice_index=choice, reason=reason, text_tail=tail, usage=usage)


def events(body: bytes) -> list[dict[str, Any]]:
    pieces = body.split(b"\n\n")
    assert pieces.pop() == b""
    assert all(piece.startswith(b"data: ") for piece in pieces)
    return [json.loads(piece[6:]) for piece in pieces if piece != DONE.strip()]


def test_a_chat_stream_from_role_to_done() -> None:
    answer = live(usage=True)
    body = answer.roles(1)
    answer.tokens(0, [AWKWARD, "", "x"], [1, 2, 3])
    answer.finished(finished(tail="tail", reason=types.FINISH_REASON_LENGTH))
    body += answer.ending(None)
    assert body.endswith(DONE)
    role, first, second, tail, last, usage = events(body)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["delta"] for e in (first, second, tail)] == [
        {"content": AWKWARD},
        {"content": "x"},
        {"content": "tail"},
    ]
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 5
    assert all(e["usage"] is None for e in (role, first, last))
    for event in (role, first, last, usage):
        assert (event["id"], event["created"], event["model"]) == ("id-1", 5, 'a "model"')
        assert event["object"] == "chat.completion.chunk"
        assert event["system_fingerprint"].startswith("deepflow-")


def test_a_completion_stream_says_text() -> None:
    answer = live(is_chat=False, choices=2)
    answer.tokens(1, ["x"], [1])
    answer.finished(finished(1))
    token, last = events(answer.take())
    assert token["choices"][0]["text"] == "x"
    assert token["choices"][0]["index"] == 1
    assert token["object"] == "text_completion" and "usage" not in token
    assert last["choices"][0] == {
        "index": 1,
        "text": "",
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_with_token_ids_every_token_is_an_event() -> None:
    answer = live(ids=True)
    answer.tokens(0, ["", "x"], [7, 8])
    choices = [event["choices"][0] for event in events(answer.take())]
    assert [(c["delta"]["content"], c["token_ids"]) for c in choices] == [("", [7]), ("x", [8])]


def test_a_failed_stream_ends_with_an_error_event_and_done() -> None:
    answer = live(usage=True)
    answer.tokens(0, ["x"], [1])
    token, error = events(answer.ending(Unavailable("gone", reason="job_executor_lost")))
    assert token["choices"]
    assert error["error"] == {
        "message": "gone",
        "type": "service_unavailable_error",
        "param": None,
        "code": "job_executor_lost",
    }


def test_flush_keeps_what_the_client_cannot_take() -> None:
    answer = live()
    answer.tokens(0, ["x", "y"], [1, 2])
    assert not answer.flush()
    answer.push = lambda _body: False
    assert not answer.flush() and answer.has_events
    pushed: list[bytes] = []

    def push(body: bytes) -> bool:
        pushed.append(body)
        return True

    answer.push = push
    assert answer.flush() and not answer.has_events
    assert answer.flush(), "nothing left is nothing to wait for"
    assert len(pushed) == 1 and len(events(pushed[0])) == 2


def test_a_whole_answer_sums_usage_once_per_prompt() -> None:
    answer = WholeAnswer(4, UsageSum(2), is_chat=False, with_ids=True)
    for choice in (3, 1, 0, 2):
        answer.tokens(choice, [f"{choice}", "!"], [choice, 9])
        answer.finished(finished(choice, tail="."))
    document = answer.document("id", 1, "m")
    assert [c["text"] for c in document["choices"]] == ["0!.", "1!.", "2!.", "3!."]
    assert [c["token_ids"] for c in document["choices"]] == [[0, 9], [1, 9], [2, 9], [3, 9]]
    assert document["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_choice_that_fails_is_the_failure_of_the_answer() -> None:
    answer = WholeAnswer(1, UsageSum(1), is_chat=True, with_ids=False)
    failed = finished(reason=types.FINISH_REASON_ERROR)
    failed.error.CopyFrom(to_proto(Unavailable("out of blocks")))
    answer.finished(failed)
    assert isinstance(answer.failure, Unavailable)
