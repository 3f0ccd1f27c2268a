"""Log probabilities in each route's words, from the columns that carry them."""

import json
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.logprobs import (
    LOGPROB_MIN,
    ChatLogprobs,
    TextLogprobs,
    keeper_for,
    offsets_in,
    prompt_document,
)
from services.gateway.streaming.scores import Alternative, Score, fits, prompt_fits, scores_of
from services.gateway.streaming.wanted import Wanted

EURO = "€".encode()


def details(*tops: list[int]) -> jobs.TokenDetails:
    ids = [token_id for top in tops for token_id in top]
    return jobs.TokenDetails(
        token_bytes=[b"t%d" % i for i in range(len(tops))],
        top_counts=[len(top) for top in tops],
        top_token_ids=ids,
        top_token_bytes=[b"%d" % token_id for token_id in ids],
        top_logprobs=[-float(token_id) for token_id in ids],
    )


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6))
def test_columns_become_the_tokens_that_they_were_made_of(tops: list[list[int]]) -> None:
    columns, logprobs = details(*tops), [float(-i) for i in range(len(tops))]
    assert fits(columns, logprobs)
    scores = scores_of(columns, logprobs)
    assert [[a.token_id for a in score.alternatives] for score in scores] == tops
    assert [(s.token, s.logprob) for s in scores] == [
        (b"t%d" % i, -float(i)) for i in range(len(tops))
    ]


def test_columns_that_disagree_do_not_fit() -> None:
    columns = details([1, 2], [3])
    assert not fits(columns, [0.0])
    columns.top_counts[0] = 1
    assert not fits(columns, [0.0, 0.0])
    assert not prompt_fits(jobs.ChoicePrompt(token_ids=[1], token_bytes=[b"a"], logprobs=[-1]))
    assert prompt_fits(jobs.ChoicePrompt(token_ids=[1], token_bytes=[b"a"]))


def test_a_chat_has_the_bytes_of_broken_characters_and_no_infinity() -> None:
    keeper = ChatLogprobs()
    keeper.expect([Score(EURO[:2], -inf, [Alternative(1, EURO, -1.0)]), Score(EURO[2:], -2.0, [])])
    assert keeper.take() is None, "nothing has come yet"
    keeper.token("")
    keeper.token("€")
    taken = keeper.take()
    assert taken is not None and keeper.take() is None
    first, second = taken["content"]
    assert (first["token"], first["bytes"]) == ("\ufffd", list(EURO[:2]))
    assert first["logprob"] == LOGPROB_MIN
    assert first["top_logprobs"] == [{"token": "€", "logprob": -1.0, "bytes": list(EURO)}]
    assert second["bytes"] == list(EURO[2:])
    json.loads(json.dumps(taken, allow_nan=False))


def test_a_completion_counts_offsets_in_the_text_that_is_shown() -> None:
    keeper = TextLogprobs(1)
    keeper.expect([Score(EURO[:2], -1.0, []), Score(EURO[2:], -2.0, []), Score(b"x", -3.0, [])])
    for text in ("", "€", "x"):
        keeper.token(text)
    taken = keeper.take()
    assert taken is not None
    assert taken["tokens"] == ["bytes:\\xe2\\x82", "bytes:\\xac", "x"]
    assert taken["text_offset"] == [0, 0, 1]


def test_the_token_itself_is_among_the_alternatives_once() -> None:
    keeper = TextLogprobs(2)
    likely = [Alternative(1, b"a", -0.5), Alternative(2, b"b", -1.0), Alternative(3, b"c", -2.0)]
    keeper.expect([Score(b"a", -0.5, likely), Score(b"z", -9.0, likely)])
    keeper.token("a")
    keeper.token("z")
    taken = keeper.take()
    assert taken is not None
    assert taken["top_logprobs"] == [{"a": -0.5, "b": -1.0}, {"a": -0.5, "b": -1.0, "z": -9.0}]


def test_what_is_kept_is_what_was_wanted() -> None:
    assert keeper_for(Wanted(is_chat=True)).take() is None
    assert isinstance(keeper_for(Wanted(is_chat=True, logprobs=0)), ChatLogprobs)
    assert isinstance(keeper_for(Wanted(is_chat=False, logprobs=0)), TextLogprobs)


def test_a_prompt_of_one_token_has_nothing_to_tell() -> None:
    prompt = jobs.ChoicePrompt(token_ids=[5], token_bytes=[b"a"])
    assert prompt_document(prompt, 3) == [None]


@given(st.lists(st.text(min_size=1, max_size=3), max_size=8))
def test_offsets_of_whole_tokens_are_where_they_begin(tokens: list[str]) -> None:
    offsets = offsets_in("".join(tokens), [token.encode() for token in tokens])
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]


@given(st.text(max_size=12), st.lists(st.binary(max_size=4), max_size=12))
def test_offsets_rise_and_stay_inside_the_text(text: str, tokens: list[bytes]) -> None:
    offsets = offsets_in(text, tokens)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)


def test_a_mark_and_a_space_that_the_text_lacks_have_no_width() -> None:
    assert offsets_in("Hello you", [b"<s>", b" Hello", b" you"]) == [0, 0, 5]
