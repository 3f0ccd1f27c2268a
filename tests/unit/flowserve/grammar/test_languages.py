"""Whatever is drawn is a word of the language: in every vocabulary, from any logits."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.grammar.sources import GrammarError
from tests.unit.flowserve.grammar import rig

LANGUAGES: dict[str, Callable[[], rig.Language]] = {
    "demo": rig.demo,
    "padded": rig.padded,
    "byte fallback": rig.byte_fallback,
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}
names = st.text("abz_é ", min_size=1, max_size=4)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
    st.builds(
        lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
        st.integers(-99, 99),
        st.integers(0, 500),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(names, st.integers(-5, 5), st.booleans(), st.none()), min_size=1),
    ),
)


def _array(items: dict[str, Any], least: int, span: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + span}


def _object(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:num_required],
        "additionalProperties": False,
    }


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(_array, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(_object, st.dictionaries(names, inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)
seeds = st.integers(0, 2**32)


def satisfies(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that the strategies above use."""
    if "anyOf" in schema:
        return any(satisfies(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(type(value) is type(item) and value == item for item in schema["enum"])
    kind = schema["type"]
    is_of_kind = isinstance(value, TYPES[kind])
    if not is_of_kind or (isinstance(value, bool) and kind != "boolean"):
        return False
    match kind:
        case "string":
            return bool(len(value) <= schema["maxLength"])
        case "integer":
            return bool(schema["minimum"] <= value <= schema["maximum"])
        case "array":
            fits = schema["minItems"] <= len(value) <= schema["maxItems"]
            return fits and all(satisfies(item, schema["items"]) for item in value)
        case "object":
            known = schema["properties"]
            return (
                set(schema["required"]) <= value.keys() <= known.keys()
                and all(satisfies(item, known[name]) for name, item in value.items())
            )  # fmt: skip
    return True


@pytest.mark.parametrize("name", LANGUAGES)
@settings(max_examples=20, deadline=None)
@given(schema=schemas, seed=seeds)
def test_json_satisfies_its_schema(name: str, schema: dict[str, Any], seed: int) -> None:
    language = LANGUAGES[name]()
    grammar = Grammar("json_schema", json.dumps(schema))
    text = language.decode(rig.draw_answer(language, grammar, seed))
    assert satisfies(json.loads(text), schema), text


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_any_object_is_an_object(seed: int) -> None:
    grammar = Grammar("json_schema", '{"type":"object"}')
    text = rig.demo().decode(rig.draw_answer(rig.demo(), grammar, seed))
    assert isinstance(json.loads(text), dict)


atoms = st.sampled_from(["a", "b", "[a-f]", "[^x]", r"\d", r"\w", r"\.", "é", "日", "/", '"', " "])
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.builds(
            lambda part, repeat: f"({part}){repeat}",
            inner,
            st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{1,}"]),
        ),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", LANGUAGES)
@settings(max_examples=20, deadline=None)
@given(expression=expressions, seed=seeds)
def test_text_matches_its_expression(name: str, expression: str, seed: int) -> None:
    language = LANGUAGES[name]()
    text = language.decode(rig.draw_answer(language, Grammar("regex", expression), seed))
    assert re.fullmatch(expression, text), (expression, text)


texts = st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF), max_size=12)


@settings(max_examples=20, deadline=None)
@given(choices=st.lists(texts, min_size=1, max_size=6), seed=seeds)
def test_a_choice_is_one_of_them(choices: list[str], seed: int) -> None:
    language = rig.demo()
    grammar = Grammar("choice", json.dumps(choices))
    assert language.decode(rig.draw_answer(language, grammar, seed)) in choices


def test_a_larger_vocabulary_than_the_tokenizers_is_cut_from_the_masks() -> None:
    language = rig.padded()
    matchers = RowMatchers(language.grammars, language.vocab_size)
    matchers.admit(3, Grammar("regex", "(?s:.)*"), [])
    masks = matchers.masks(np.array([1, 3]))
    assert masks is not None
    entries, bits = masks
    allowed = np.flatnonzero(np.unpackbits(bits[0].view(np.uint8), bitorder="little"))
    assert entries.tolist() == [1] and bits.shape == (1, 50)
    assert allowed.max() < 1536 and set(language.eos_token_ids) <= set(allowed.tolist())


def test_a_smaller_vocabulary_than_the_tokenizers_cuts_the_masks() -> None:
    small = rig.Language(rig.demo().folder, 1000, (2,))
    matchers = RowMatchers(small.grammars, 1000)
    matchers.admit(0, Grammar("regex", ".*"), [])
    masks = matchers.masks(np.array([0]))
    assert masks is not None
    allowed = np.flatnonzero(np.unpackbits(masks[1][0].view(np.uint8), bitorder="little"))
    assert masks[1].shape == (1, 32) and 2 in allowed and 900 < allowed.max() < 1000


def test_every_eos_may_end_an_answer_that_could_go_on() -> None:
    language = rig.padded()
    for eos in language.eos_token_ids:
        matchers = RowMatchers(language.grammars, language.vocab_size)
        matchers.admit(0, Grammar("regex", "a*"), [])
        assert matchers.accept(np.array([0]), np.array([eos])) == ([0], {})


def test_blanks_between_the_parts_of_json_come_to_an_end() -> None:
    language = rig.demo()
    grammar = Grammar("json_schema", '{"type":"array","items":{"type":"null"}}')
    for blanks, fits in ((" ", True), ("\n" + " " * 40, True), ("\n" + " " * 41, False)):
        matchers = RowMatchers(language.grammars, language.vocab_size)
        matchers.admit(0, grammar, language.encode("["))
        failures = [
            matchers.accept(np.array([0]), np.array([token]))[1]
            for token in language.encode(blanks + "null")
        ]
        assert (not any(failures)) == fits, blanks


def test_a_token_that_does_not_fit_fails_its_row_alone() -> None:
    language = rig.demo()
    matchers = RowMatchers(language.grammars, language.vocab_size)
    for row in (0, 1):
        matchers.admit(row, Grammar("regex", "[ab]{5}"), [])
    (a,), (x,) = language.encode("a"), language.encode("x")
    completed, failures = matchers.accept(np.array([0, 1, 2]), np.array([x, a, x]))
    assert completed == [] and list(failures) == [0]
    assert failures[0].startswith("the grammar could not be followed")
    masks = matchers.masks(np.array([0, 1]))
    assert masks is not None
    # The failed row may draw anything until it is released; its neighbour may not.
    counts = [int(np.unpackbits(bits.view(np.uint8)).sum()) for bits in masks[1]]
    assert counts[0] == language.vocab_size and counts[1] < 100
    matchers.release(0)
    assert len(matchers) == 1


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("json_schema", '{"type":"array","uniqueItems":true}', "uniqueItems"),
        ("json_schema", '{"$ref":"#/nope"}', "/nope"),
        ("json_schema", '{"$ref":"file:///etc/passwd"}', "does not fetch"),
        ("json_schema", '{"$ref":"#"}', "allows no answer"),
        ("json_schema", '{"type":"strin"}', "strin"),
        ("lark", "start: nothing", "unknown name"),
    ],
)
def test_what_cannot_be_followed_is_said(kind: str, source: str, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)):
        rig.demo().grammars.matcher(Grammar(kind, source))
