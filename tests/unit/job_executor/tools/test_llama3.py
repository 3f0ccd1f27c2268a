"""Calls that nothing marks but their form and the names of the tools."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.tools.events import Text
from services.job_executor.tools.llama3 import Llama3Parser
from tests.unit.job_executor.tools.reading import Read, cut, read

PLACES = st.lists(st.integers(0, 10_000), max_size=12)


def parser() -> Llama3Parser:
    return Llama3Parser(["f", "g"])


def one(text: str) -> Read:
    return read(parser(), [text])


def call(name: str, parameters: Any) -> str:
    return json.dumps({"name": name, "parameters": parameters}, ensure_ascii=False)


@given(
    st.lists(st.dictionaries(st.text(), st.text(), max_size=2), min_size=1, max_size=3),
    st.sampled_from(["", "\n", "<|python_tag|>"]),
    st.sampled_from([";", "; ", " ;\n"]),
    PLACES,
)
def test_what_was_written_is_read(
    parameters: list[dict[str, str]], lead: str, separator: str, places: list[int]
) -> None:
    text = lead + separator.join(call("f", item) for item in parameters)
    found = read(parser(), cut(text, places))
    assert found.text == ""
    assert [json.loads(text) for _, text in found.calls] == parameters
    assert found.complete == [True] * len(parameters)


SCRAPS = st.sampled_from(
    [
        *("<|python_tag|>", "<|python", ";", " ", "{", "}", '{"name": "f"', '"parameters": ', ","),
        *(call("f", {}), call("g", {"a": ";"}), call("h", {}), "x", '"', "\n", '{"a": 1}'),
    ]
)


@given(st.lists(SCRAPS, max_size=15), PLACES)
def test_where_pieces_are_cut_makes_no_difference(scraps: list[str], places: list[int]) -> None:
    text = "".join(scraps)
    whole = one(text)
    assert read(parser(), cut(text, places)) == whole
    assert read(parser(), list(text)) == whole
    if not whole.calls:
        assert whole.text == text, "nothing is lost"


@pytest.mark.parametrize(
    "text",
    [
        "Sure: " + call("f", {}),
        call("Alice", {"age": 3}),
        '{"name": "f", "age": 3}',
        '{"city": "Rome"}',
        "<|python_tag|>print(1)",
        '{"name": "f"}',
        "[1]",
        "<|py",
        "",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    found = one(text)
    assert (found.text, found.calls) == (text, [])


def test_other_json_is_not_held_back() -> None:
    assert parser().push('{"city"') == []
    assert parser().push('{"city":') == []
    assert parser().push('{"city": "R') == [Text('{"city": "R')]


def test_text_after_calls_is_text() -> None:
    found = one(call("f", {}) + " and more")
    assert (found.text, len(found.calls)) == (" and more", 1)
    found = one(call("f", {}) + "; and more")
    assert (found.text, len(found.calls)) == ("; and more", 1)
    found = one(call("f", {}) + ";\n")
    assert (found.text, len(found.calls)) == ("", 1)


def test_both_words_for_arguments_are_known() -> None:
    assert one('{"name": "f", "arguments": {"a": 1}}').calls == [("f", '{"a": 1}')]
