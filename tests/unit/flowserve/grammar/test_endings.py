"""A schema has a part without a finite answer exactly where no tree of any size fits it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.flowserve.grammar.endings import (
    POINTER_CHARACTERS_MAX,
    find_endless_part,
)

NAMES = ("a", "b", "c")
ENDLESS: dict[str, Any] = {"$ref": "#/$defs/endless"}
DEFS = {"endless": {"type": "object", "required": ["x"], "properties": {"x": ENDLESS}}}

references = st.sampled_from(NAMES).map(lambda name: {"$ref": f"#/$defs/{name}"})
leaves = st.one_of(
    references,
    references,
    st.sampled_from([{"type": "null"}, {"const": 1}, {}, True, {"type": ["object", "null"]}]),
)


def an_object(properties: dict[str, Any], num_required: int) -> dict[str, Any]:
    required = list(properties)[:num_required]
    return {"type": "object", "properties": properties, "required": required}


def an_array(items: Any, first: list[Any], least: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "prefixItems": first, "minItems": least}


parts = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(an_object, st.dictionaries(st.sampled_from("xy"), inner), st.integers(0, 2)),
        st.builds(an_array, inner, st.lists(inner, max_size=2), st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.lists(inner, min_size=1, max_size=2).map(lambda every: {"allOf": every}),
        st.builds(
            lambda others: {"type": "object", "additionalProperties": others, "minProperties": 1},
            inner,
        ),
    ),
    max_leaves=5,
)


def fits_a_tree(part: Any, defs: dict[str, Any], height: int) -> bool:
    """Of at most this height, references counted: tried, not reasoned about."""
    if not isinstance(part, dict) or "const" in part:
        return True
    if height == 0:
        return False

    def fits(inner: Any) -> bool:
        return fits_a_tree(inner, defs, height - 1)

    if "$ref" in part:
        return fits(defs[part["$ref"].rpartition("/")[2]])
    if "anyOf" in part:
        return any(map(fits, part["anyOf"]))
    if "allOf" in part:
        return all(map(fits, part["allOf"]))
    if part.get("type") == "object":
        others = part.get("additionalProperties", True)
        needed = [part["properties"][name] for name in part.get("required", ())]
        return all(map(fits, needed)) and (fits(others) or "minProperties" not in part)
    if part.get("type") == "array":
        first, least = part["prefixItems"], part["minItems"]
        return all(fits((first + [part["items"]] * 3)[i]) for i in range(least))
    return True


def all_parts(part: Any, defs: dict[str, Any], known: list[Any]) -> list[Any]:
    """What can be come to from here."""
    if isinstance(part, dict) and not any(part is other for other in known):
        known.append(part)
        if "$ref" in part:
            all_parts(defs[part["$ref"].rpartition("/")[2]], defs, known)
        for value in part.values():
            inner = value.values() if isinstance(value, dict) else value
            for item in inner if not isinstance(inner, str | int) else ():
                all_parts(item, defs, known)
            all_parts(value, defs, known)
    return known


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, parts)))
def test_what_is_found_is_what_no_tree_fits(defs: dict[str, Any]) -> None:
    schema = {"$defs": defs, "$ref": "#/$defs/a"}
    reached = all_parts({"$ref": "#/$defs/a"}, defs, [])
    # A shortest path to an end comes to no part twice.
    has_endless = not all(fits_a_tree(part, defs, len(reached) + 1) for part in reached)
    assert bool(find_endless_part(schema)) == has_endless


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#"}, "#"),
        ({"oneOf": [{"$ref": "#"}]}, "#"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "#"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "#"),
        ({"properties": {"p": ENDLESS}, "$defs": DEFS}, "#/properties/p"),
        ({"additionalProperties": ENDLESS, "$defs": DEFS}, "#/additionalProperties"),
        ({"anyOf": [{"type": "null"}, ENDLESS], "$defs": DEFS}, "#/anyOf/1"),
        ({"required": ["q"], "type": "object", "additionalProperties": {"$ref": "#"}}, "#"),
        ({"properties": {"a~/%": {"$ref": "#/properties/a~0~1%25"}}}, "#/properties/a~/%"),
        ({"": {"$ref": "#/"}, "$ref": "#/"}, "#"),
        ({"anyOf": [{"$ref": "#/anyOf/0"}, {}]}, "#/anyOf/0"),
    ],
)
def test_the_part_is_named(schema: dict[str, Any], place: str) -> None:
    assert find_endless_part(schema) == place


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},  # no object at all fits
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"$defs": DEFS, "type": "null"},
        {"type": "string", "properties": {"p": ENDLESS}, "$defs": DEFS},
        {"enum": [1], "allOf": [{"$ref": "#"}]},
        {"$ref": "#/nowhere"},
        {"$ref": "#/type/0/more", "type": ["object"]},
        {"$ref": "https://example.org/schema"},
        {"$ref": 5, "required": 5, "properties": [], "anyOf": {}, "minItems": "x"},
        {"$defs": {"a": {"$id": "x", "$ref": "#"}}, "allOf": [{"$ref": "#/$defs/a"}]},
        {"type": ["array", "object"], "items": {"$ref": "#"}, "required": ["a"], "minItems": 0},
    ],
)
def test_what_may_end_is_left_alone(schema: Any) -> None:
    assert find_endless_part(schema) == ""


def test_a_place_is_not_as_long_as_the_names_in_it() -> None:
    schema = {"properties": {"x" * 10_000: ENDLESS}, "$defs": DEFS}
    assert len(find_endless_part(schema)) == POINTER_CHARACTERS_MAX
