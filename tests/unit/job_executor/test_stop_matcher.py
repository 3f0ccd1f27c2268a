"""The matcher against a search on the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.tokenizer.stop_matcher import (
    PatientStopMatcher,
    StopMatcher,
    new_stop_matcher,
)

TEXTS = st.text(alphabet="abc", max_size=12)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """By definition: the stop string that is complete first; of those the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text
    end, negative_length = min(ends)
    return text[: end + negative_length]


def run(pieces: list[str], stops: list[str]) -> tuple[str, str]:
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(piece) for piece in pieces)
    return out + matcher.finish(""), matcher.matched


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    text, matched = run(pieces, stops)
    whole = "".join(pieces)
    assert text == cut(whole, stops)
    assert bool(matched) == any(stop in whole for stop in stops)


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    seen = given_out = ""
    for piece in pieces:
        seen += piece
        given_out += matcher.push(piece)
        if matcher.matched:
            return
        held = seen[len(given_out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def cut_after(pieces: list[str], stops: list[str], min_tokens: int) -> str:
    """By definition: what is complete within the first pieces does not count."""
    passed = len("".join(pieces[: max(min_tokens - 1, 0)]))
    text = "".join(pieces)
    ends = [
        (end, -len(stop))
        for stop in stops
        for end in range(passed + 1, len(text) + 1)
        if text[:end].endswith(stop)
    ]
    if not ends:
        return text
    end, negative_length = min(ends)
    return text[: end + negative_length]


@given(st.lists(TEXTS, max_size=8), STOPS, st.integers(0, 9))
def test_a_stop_string_that_is_complete_too_early_is_text(
    pieces: list[str], stops: list[str], min_tokens: int
) -> None:
    matcher = PatientStopMatcher(stops, min_tokens)
    given_out = [matcher.push(piece) for piece in pieces]
    assert "".join(given_out) + matcher.finish("") == cut_after(pieces, stops, min_tokens)


@given(st.lists(TEXTS, min_size=1, max_size=8), STOPS, st.integers(0, 9))
def test_what_is_left_at_the_end_belongs_to_the_last_token(
    pieces: list[str], stops: list[str], min_tokens: int
) -> None:
    whole, halved = PatientStopMatcher(stops, min_tokens), PatientStopMatcher(stops, min_tokens)
    text = "".join(whole.push(piece) for piece in pieces) + whole.finish("")
    before = "".join(halved.push(piece) for piece in [*pieces[:-1], ""])
    assert before + halved.finish(pieces[-1]) == text


def test_patience_is_only_for_those_who_need_it() -> None:
    assert new_stop_matcher([], 5) is None
    assert type(new_stop_matcher(["x"], 1)) is StopMatcher
    assert type(new_stop_matcher(["x"], 2)) is PatientStopMatcher


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["hello ", "wor", "ld"], ["world"], ("hello ", "world")),
        (["hello ", "wor", "k"], ["world"], ("hello work", "")),
        (["a", "a", "b"], ["ab"], ("a", "ab")),
        (["one\n", "\ntwo"], ["\n\n"], ("one", "\n\n")),
        (["xabc"], ["abc", "b"], ("xa", "b")),
        (["xbc"], ["c", "bc"], ("x", "bc")),
        (["tail wor"], ["world"], ("tail wor", "")),
    ],
)
def test_examples(pieces: list[str], stops: list[str], expected: tuple[str, str]) -> None:
    assert run(pieces, stops) == expected
