"""Calls between tags, among text, in whatever pieces they come."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.tools import parser as parsing
from services.job_executor.tools.events import Arguments, CallBegan, Text
from services.job_executor.tools.hermes import HermesParser
from tests.unit.job_executor.tools.reading import Read, cut, read

ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.integers() | st.text() | st.sampled_from(["</tool_call>", '}"{', "\\", "]"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


def one(text: str) -> Read:
    return read(HermesParser(), [text])


def call(
    name: str,
    arguments: Any,
    *,
    is_ascii: bool = False,
    indent: int | None = None,
    names_first: bool = True,
) -> str:
    document = {"name": name, "arguments": arguments}
    if not names_first:
        document = {"arguments": arguments, "id": 7, "name": name}
    return (
        f"<tool_call>\n{json.dumps(document, ensure_ascii=is_ascii, indent=indent)}\n</tool_call>"
    )


@given(
    arguments=st.lists(ARGUMENTS, min_size=1, max_size=3),
    before=st.text(alphabet="ab <{\n"),
    is_ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
    names_first=st.booleans(),
    places=PLACES,
)
def test_what_was_written_is_read(
    arguments: list[dict[str, Any]],
    before: str,
    is_ascii: bool,
    indent: int | None,
    names_first: bool,
    places: list[int],
) -> None:
    layout: dict[str, Any] = {"is_ascii": is_ascii, "indent": indent, "names_first": names_first}
    calls = [call(f"f{i}", item, **layout) for i, item in enumerate(arguments)]
    found = read(HermesParser(), cut(before + "\n".join(calls), places))
    assert found.text == (before if before.strip() else "")
    assert [name for name, _ in found.calls] == [f"f{i}" for i in range(len(arguments))]
    assert [json.loads(text) for _, text in found.calls] == arguments
    assert all(f'"arguments": {text}' in calls[i] for i, (_, text) in enumerate(found.calls))
    assert all(found.complete)


SCRAPS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<tool_",
            "<",
            '{"name": "f"',
            '"arguments": ',
            '{"a": 1}',
        ),
        *(
            "{",
            "}",
            '"',
            ",",
            ":",
            "\\",
            " ",
            "\n",
            "x",
            "é😀",
            '"name":"g"',
            "null",
            "12",
            "[",
            "]",
        ),
        *(call("f", {"a": "b"}), '{"arguments": {}, "name": "h"}'),
    ]
)


@given(st.lists(SCRAPS, max_size=25), PLACES)
def test_where_pieces_are_cut_makes_no_difference(scraps: list[str], places: list[int]) -> None:
    text = "".join(scraps)
    whole = one(text)
    assert read(HermesParser(), cut(text, places)) == whole
    assert read(HermesParser(), list(text)) == whole
    if not whole.calls:
        assert whole.text == text, "nothing is lost"


def test_arguments_are_given_out_as_they_come() -> None:
    parser = HermesParser()
    assert parser.push('<tool_call>{"name": "f", "argum') == []
    assert parser.push('ents": {"ci') == [CallBegan(0, "f"), Arguments(0, '{"ci')]
    assert parser.push("ty") == [Arguments(0, "ty")]


def test_arguments_before_the_name_wait_for_it() -> None:
    parser = HermesParser()
    assert parser.push('<tool_call>{"arguments": {"a": 1}, "name": "') == []
    assert parser.push('f"') == [CallBegan(0, "f"), Arguments(0, '{"a": 1}')]


def test_text_is_held_back_only_while_it_may_become_a_tag() -> None:
    parser = HermesParser()
    assert parser.push("1 <") == [Text("1 ")]
    assert parser.push(" 2") == [Text("< 2")]
    assert parser.push("<tool_") == []
    assert parser.push("box>") == [Text("<tool_box>")]


def test_text_around_calls_is_text_and_blanks_are_not() -> None:
    text = f"\n\n{call('f', {})}\n{call('g', {})}\n\n and then "
    found = one(text)
    assert (found.text, len(found.calls)) == ("\n\n and then ", 2)
    found = one(f"I look. {call('f', {})}\n")
    assert (found.text, found.order[0]) == ("I look. ", "Text")


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>no json</tool_call>",
        '<tool_call>{"name": "f", "argu',
        '<tool_call>{"name": "no such, name!", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>["f"]</tool_call>',
        " \n",
        "answer <tool_c",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    found = one(text)
    assert (found.text, found.calls) == (text, [])


def test_a_call_that_is_cut_short_stays_a_call_but_is_not_complete() -> None:
    found = one('<tool_call>{"name": "f", "arguments": {"a": "b')
    assert (found.calls, found.complete) == ([("f", '{"a": "b')], [False])
    found = one('<tool_call>{"name": "f", "arguments": {"a": <broken></tool_call>')
    assert (found.calls, found.complete) == ([("f", '{"a": ')], [False])
    assert found.text == "<broken></tool_call>"


def test_small_mistakes_are_forgiven() -> None:
    assert one('<tool_call>{"name": "f"}</tool_call>').calls == [("f", "{}")]
    found = one('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call> so')
    assert (found.calls, found.complete, found.text) == ([("f", '{"a": 1}')], [True], " so")
    found = one('<tool_call>{"name": "f", "arguments": {}}')
    assert (found.complete, found.text) == ([True], "")


def test_a_tag_behind_a_refused_one_counts() -> None:
    found = one(f"<tool_call>{call('f', {})}")
    assert (found.text, found.calls) == ("<tool_call>", [("f", "{}")])


def test_a_call_without_a_name_is_held_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "HELD_CHARACTERS_MAX", 100)
    text = '<tool_call>{"arguments": "' + "x" * 100 + '", "name": "f"}</tool_call>'
    for pieces in ([text], list(text)):
        found = read(HermesParser(), pieces)
        assert (found.text, found.calls) == (text, [])
    short = '<tool_call>{"arguments": "' + "x" * 40 + '", "name": "f"}</tool_call>'
    assert one(short).calls == [("f", '"' + "x" * 40 + '"')]
