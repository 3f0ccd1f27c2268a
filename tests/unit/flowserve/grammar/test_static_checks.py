"""What is refused before anything is compiled, and what is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.repetitions import find_repetition_fault
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.static_checks import check


def find_grammar_fault(grammar: Grammar) -> str:
    try:
        check(grammar)
    except GrammarError as error:
        return str(error)
    return ""


def schema_fault(schema: Any) -> str:
    return find_grammar_fault(Grammar("json_schema", json.dumps(schema)))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("poem", ""), "'poem', but must be one of json_schema, regex, choice, lark"),
        (Grammar("regex", "é" * limits.SOURCE_BYTES_MAX), f"may have {limits.SOURCE_BYTES_MAX}"),
        (Grammar("json_schema", "{"), "is not JSON"),
        (Grammar("json_schema", "[" * 100_000), "is not JSON"),
        (Grammar("json_schema", "[]"), "must be an object"),
        (Grammar("choice", "{}"), "must be a JSON array of strings"),
        (Grammar("choice", '["a", 1]'), "must be a JSON array of strings"),
        (Grammar("choice", "[]"), "no choice to choose from"),
        (Grammar("choice", json.dumps(["a" * 10_001])), "10001 characters"),
        (Grammar("choice", json.dumps([str(i) for i in range(20_001)])), "20001 choices"),
        (Grammar("lark", "start: /a{99999}/"), "asks for at least 100007"),
        (Grammar("lark", 'start: %json {"minLength": 99999}'), "minLength is 99999"),
        (Grammar("regex", '"a\\'), "ends in a backslash"),
        (Grammar("regex", "\\"), "ends in a backslash"),
        (Grammar("regex", "a|\\\\\\"), "ends in a backslash"),
    ],
)
def test_refused(grammar: Grammar, said: str) -> None:
    assert said in find_grammar_fault(grammar)


def test_a_reference_that_is_spelled_with_escapes_is_one() -> None:
    assert "comes to an end" in find_grammar_fault(Grammar("json_schema", r'{"\u0024ref": "#"}'))


def test_backslashes_that_escape_something_are_fine() -> None:
    for expression in ("a\\\\", '"a\\\\"', "\\d", "\\\\\\\\", '\\"'):
        assert find_grammar_fault(Grammar("regex", expression)) == ""


def test_a_fault_of_a_schema_inside_names_which_it_is() -> None:
    lines = ("start: a b", 'a: %json {"type": "null"}', 'b: %json {"$ref": "#"}')
    source = "\n".join(lines)
    with pytest.raises(GrammarError, match="no answer to # comes to an end") as raised:
        check(Grammar("lark", source))
    assert raised.value.part == 1


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (nested(limits.DEPTH_MAX + 1), "deeper than 64"),
        ({"properties": {f"p{i}": {} for i in range(1001)}}, "1001 properties"),
        ({"items": {"minItems": 10_001}}, "minItems is 10001"),
        ({"pattern": "(a{101}){100}"}, "pattern: the expression asks for at least 10100"),
        ({"enum": list(range(20_001))}, "20001 values"),
        ({"enum": ["a" * 10_001]}, "10001 characters"),
        ({"const": "a" * 10_001}, "10001 characters"),
        ({"anyOf": [{"$ref": "#/anyOf/0"}, {}]}, "no answer to #/anyOf/0 comes to an end"),
    ],
)
def test_a_schema_that_is_too_large(schema: dict[str, Any], said: str) -> None:
    assert said in schema_fault(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        nested(limits.DEPTH_MAX),
        {"properties": {f"p{i}": {} for i in range(1000)}},
        {"properties": {"minLength": {"type": "string"}, "enum": {"const": 1}}},
        {"maxLength": 1_000_000, "pattern": "^[a-z]{1,1000000}$"},
        {"enum": list(range(20_000))},
    ],
)
def test_a_schema_that_is_not(schema: Any) -> None:
    assert schema_fault(schema) == ""


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("a{10000}", 10_000),
        ("(a{100}){100}", 10_000),
        ("((ab){50}c{0,9})+{10}", 1000),
        ("(abc|d){10}", 30),
        ("(a{5000})*(b{4000})?x", 5000),
        ("[{}()|]{7}", 7),
        (r"\(\{{3}", 4),
        ("a{2,}b{0,3}", 3),
        ("x)y(z", 3),
    ],
)
def test_the_least_text_of_an_expression(
    expression: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FORCED_CHARACTERS_MAX", count)
    assert find_repetition_fault(expression) == ""
    monkeypatch.setattr(limits, "FORCED_CHARACTERS_MAX", count - 1)
    assert "asks for at least" in find_repetition_fault(expression)


def test_a_count_beyond_reason() -> None:
    assert "1000001 times" in find_repetition_fault("a{0,1000001}")
    assert find_repetition_fault("a{0,1000000}") == ""


@given(st.text("a(){}[]|*+?\\,019^", max_size=40))
def test_any_text_is_judged(expression: str) -> None:
    assert isinstance(find_repetition_fault(expression), str)
