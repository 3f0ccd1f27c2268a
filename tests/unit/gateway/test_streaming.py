"""Events as bytes, whole answers, usage: what a client reads."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import Unavailable, to_proto
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.streaming.detailed import DetailedLiveAnswer, DetailedWholeAnswer
from services.gateway.streaming.events import DONE, EventFormat
from services.gateway.streaming.live import LiveAnswer
from services.gateway.streaming.usage import UsageSum
from services.gateway.streaming.wanted import Wanted
from services.gateway.streaming.whole import WholeAnswer

AWKWARD = 'a"b\\c\n\t\u2028é\U0001f600\x00</script>'


def live(
    *,
    is_chat: bool = True,
    choices: int = 1,
    usage: bool = False,
    ids: bool = False,
    logprobs: int | None = None,
    echo: bool = False,
) -> LiveAnswer:
    form = EventFormat(
        is_chat=is_chat,
        answer_id="id-1",
        created=5,
        model='a "model"',
        choices=choices,
        include_usage=usage,
    )
    wanted = Wanted(is_chat=is_chat, token_ids=ids, logprobs=logprobs, echo=echo)
    if wanted.is_detailed:
        return DetailedLiveAnswer(
            form, UsageSum(choices), wanted, include_usage=usage, choices=choices
        )
    return LiveAnswer(form, UsageSum(choices), wanted, include_usage=usage)


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
    answer = DetailedWholeAnswer(4, UsageSum(2), Wanted(is_chat=False, token_ids=True))
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
    answer = WholeAnswer(1, UsageSum(1), Wanted(is_chat=True))
    failed = finished(reason=types.FINISH_REASON_ERROR)
    failed.error.CopyFrom(to_proto(Unavailable("out of blocks")))
    answer.finished(failed)
    assert isinstance(answer.failure, Unavailable)


def detailed(first: int, count: int) -> tuple[jobs.TokenDetails, list[float]]:
    names = [b"%d" % i for i in range(first, first + count)]
    details = jobs.TokenDetails(token_bytes=names, top_counts=[0] * count)
    return details, [-float(i) for i in range(first, first + count)]


BATCHES = st.lists(st.lists(st.sampled_from(["", "a", "bc", "é"]), max_size=4), max_size=6)


@given(batches=BATCHES, tail=st.sampled_from(["", "z"]), ids=st.booleans(), is_chat=st.booleans())
def test_every_chunk_carries_the_log_probabilities_of_its_text(
    batches: list[list[str]], tail: str, ids: bool, is_chat: bool
) -> None:
    answer = live(is_chat=is_chat, logprobs=0, ids=ids)
    first = 0
    for texts in batches:
        answer.details(0, *detailed(first, len(texts)))
        answer.tokens(0, texts, list(range(first, first + len(texts))))
        first += len(texts)
    answer.finished(finished(tail=tail))
    everything = [text for texts in batches for text in texts]
    said, told, numbers = "", [], []
    *choices, last = [event["choices"][0] for event in events(answer.take())]
    for choice in choices:
        text = choice["delta"]["content"] if is_chat else choice["text"]
        said += text
        numbers += choice.get("token_ids", [])
        logprobs = choice["logprobs"]
        if logprobs is None:
            continue
        names = [t["token"] for t in logprobs["content"]] if is_chat else logprobs["tokens"]
        told += [int(name) for name in names]
        if text and text != tail:
            assert "".join(everything[int(name)] for name in names) == text
    assert said == "".join(everything) + tail
    assert told == list(range(first)), "each once and in order"
    assert numbers == (list(range(first)) if ids else [])
    assert last["finish_reason"] == "stop"


def test_a_call_comes_after_the_text_before_it() -> None:
    answer = live()
    answer.tokens(0, ["a"], [1])
    answer.tool_call(jobs.ToolCallDelta(call_index=0, id="1", name="f", arguments="{"))
    answer.tool_call(jobs.ToolCallDelta(call_index=0, arguments="}"))
    answer.finished(finished(reason=types.FINISH_REASON_TOOL_CALLS))
    text, begin, more, last = [event["choices"][0] for event in events(answer.take())]
    assert text["delta"] == {"content": "a"}
    assert begin["delta"]["tool_calls"] == [
        {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    ]
    assert more["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "}"}}]
    assert last["finish_reason"] == "tool_calls"


def test_details_that_nobody_asked_for_change_nothing() -> None:
    plain = live()
    plain.details(0, *detailed(0, 1))
    plain.tokens(0, ["a"], [0])
    assert events(plain.take())[0]["choices"][0]["logprobs"] is None
