"""Languages that cost more than they look, and those that no answer can be a word of. Data only."""

import json
from typing import Any

from tests.e2e.bad_requests import CHAT, COMPLETIONS, Bad

ALTERNATIVES = 12_000

# Refused: too much text, too many states, or not an expression at all.
BAD_EXPRESSIONS: dict[str, str] = {
    "counted repetitions that nest": "(((a{100}){100}){100}){100}",
    "a count of a billion": "a{1,1000000000}",
    "a count of many digits": "a{" + "9" * 400 + "}",
    "half a million of a class": r"[\d\w]{500000}",
    "letters of every script": r"(\p{L}\p{M}*){9000}(\p{L}\p{M}*){9000}",
    "groups that nest": "(" * 20_000 + "a" + ")" * 20_000,
    "groups never closed": "(" * 60_000,
    "a class never closed": "[a-z",
    "a class without a character": r"[^\s\S]",
    "a range backwards": "[z-a]",
    "a count backwards": "a{5,2}",
    "nothing to repeat": "*a",
    "a look ahead": "(?=a)a",
    "a look behind": "(?<=a)a",
    "a word said again": r"(a+)\1",
    "an unknown flag": "(?z)a",
    "an unknown property": r"\p{Klingon}",
    "a backslash that escapes nothing": '"a\\',
}

# Hard or harmless: either an answer comes or a refusal that names the field.
HARD_EXPRESSIONS: dict[str, str] = {
    "optional counts that nest": "((((a{0,200}b){0,200}c){0,200}d){0,200}e){0,200}",
    "stars in stars": "((a*)*)*b",
    "sums that can be split in any way": "(x+x+)+y",
    "alternatives that are the same": "(a|a|aa|aaa|(a|aa)*)*b",
    "what came twenty characters ago": "(a|b)*a(a|b){20}c",
    "everything but a long way back": ".*a.{500}b",
    "twelve thousand alternatives": "|".join(f"w{i:x}" for i in range(ALTERNATIVES)),
    "every script": r"(\p{L}|\p{N}|\p{P}|\p{S}|\s){1,200}",
    "any character, often": r"[\s\S]{0,9000}",
    "dots between stars": ".*.*.*.*.*.*.*.*.*.*x",
}

# Too much only further on, if at all: its own answer ends with an error, and nobody else's.
LATE_EXPRESSIONS: dict[str, str] = {"many optional letters": "a?" * 200 + "a" * 200}


def _chain(length: int) -> dict[str, Any]:
    """Each definition holds the next one twice: what is expanded grows as 2 ** length."""
    names = {
        f"d{i}": {
            "type": "object",
            "properties": {side: {"$ref": f"#/$defs/d{i + 1}"} for side in ("l", "r")},
            "required": ["l", "r"],
            "additionalProperties": False,
        }
        for i in range(length)
    }
    return {"$defs": {**names, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def _object(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **schema}


def _in_arrays(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


_CHOICES = {"anyOf": [_object(properties={f"p{i}": {"type": "string"}}) for i in range(20)]}

BAD_SCHEMAS: dict[str, Any] = {
    "ten thousand properties": _object(properties={f"p{i}": {} for i in range(10_000)}),
    "a thousand and one": _object(properties={f"p{i}": {"type": "null"} for i in range(1001)}),
    "an enum of fifty thousand": {"enum": list(range(50_000))},
    "an enum that just fits the wire": {"enum": list(range(20_001))},
    "nothing but itself": {"$ref": "#"},
    "two that are each other": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "a part without an end": _object(properties={"x": {"$ref": "#"}}, required=["x"]),
    "a branch without an end": {
        "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "minItems": 1}},
        "anyOf": [{"type": "null"}, {"$ref": "#/$defs/t"}],
    },
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a reference to another host": {"$ref": "http://127.0.0.1:9/schema.json"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "a product of sums": {"allOf": [_CHOICES] * 30},
    "a type that is none": {"type": "nope"},
    "a type that is a number": {"type": 5},
    "no type at all": {"type": []},
    "an impossible number": {"type": "integer", "minimum": 5, "maximum": 1},
    "an impossible length": {"type": "string", "minLength": 5, "maxLength": 1},
    "a length of a billion": {"type": "string", "minLength": 10**9},
    "a billion items": {"type": "array", "minItems": 10**9},
    "an enum of nothing": {"enum": []},
    "never": {"not": {}},
    "a multiple of zero": {"type": "integer", "multipleOf": 0},
    "a pattern that is none": {"type": "string", "pattern": "("},
    "a pattern too many": {"type": "string", "pattern": "((a{999}){999}){999}"},
    "a property's pattern that is none": _object(patternProperties={"(": {}}),
    "properties that are a list": {"type": "object", "properties": []},
    "required that is a number": {"type": "object", "required": 5},
    "items that are a number": {"type": "array", "items": 5},
    "a fixed text too long": {"const": "x" * 20_000},
    "an unknown format": {"type": "string", "format": "nope"},
}
# What the compiler is told about itself counts at the root alone.
BAD_OPTIONS: dict[str, Any] = {
    "blanks that are no expression": {"type": "object", "x-guidance": {"whitespace_pattern": "("}},
    "options that are none": {"type": "object", "x-guidance": {"nope": 5}},
}

HARD_SCHEMAS: dict[str, Any] = {
    "a tree without an end": {
        "$defs": {"t": _object(properties={"c": {"items": {"$ref": "#/$defs/t"}}})},
        "$ref": "#/$defs/t",
    },
    "a chain that doubles": _chain(40),
    "as deep as can be": _in_arrays(55),
    "ten thousand words": {"enum": [f"w{i}" for i in range(10_000)]},
    "items that must differ": {"type": "array", "uniqueItems": True},
    "one of many": {"oneOf": [{"type": "string", "minLength": i} for i in range(200)]},
    "up to a million items": {"type": "array", "items": {"type": "null"}, "maxItems": 10**6},
    "a number of a hundred digits": {"type": "integer", "minimum": 0, "maximum": 10**100},
    "blanks without an end": {"type": "object", "x-guidance": {"whitespace_pattern": "[ \\n]+"}},
}
LATE_SCHEMAS: dict[str, Any] = {
    "nine hundred that may be absent": _object(properties={f"p{i}": {} for i in range(900)}),
}


def _expressions(path: str, expressions: dict[str, str]) -> list[Bad]:
    return [
        Bad(path, {"guided_regex": text, "max_tokens": 4}, "guided_regex")
        for text in expressions.values()
    ]


def _schemas(path: str, schemas: dict[str, Any]) -> list[Bad]:
    inner = {"type": "json_schema"}
    at = "response_format.json_schema.schema"
    return [
        *(Bad(path, {"guided_json": s, "max_tokens": 4}, "guided_json") for s in schemas.values()),
        *(
            Bad(
                path,
                {
                    "response_format": {**inner, "json_schema": {"name": "a", "schema": s}},
                    "max_tokens": 4,
                },
                at,
            )
            for s in list(schemas.values())[:3]
        ),
        *(
            Bad(
                path,
                {"structured_outputs": {"json": json.dumps(s)}, "max_tokens": 4},
                "structured_outputs.json",
            )
            for s in list(schemas.values())[:3]
        ),
    ]


BOMBS: dict[str, list[Bad]] = {
    "bad expressions": _expressions(COMPLETIONS, BAD_EXPRESSIONS),
    "bad schemas": _schemas(CHAT, BAD_SCHEMAS | BAD_OPTIONS),
}
# An answer, or a refusal that names the field.
HARD: dict[str, list[Bad]] = {
    "hard expressions": _expressions(COMPLETIONS, HARD_EXPRESSIONS),
    "hard schemas": _schemas(CHAT, HARD_SCHEMAS),
}
LATE: list[Bad] = [*_expressions(COMPLETIONS, LATE_EXPRESSIONS), *_schemas(CHAT, LATE_SCHEMAS)]


def distinct_schema(index: int) -> dict[str, Any]:
    """A small valid schema that is no other's, so that nothing made for another one helps."""
    return _object(
        properties={
            f"name_{index}": {"type": "string", "pattern": f"^[a-z]{{1,{index % 50 + 1}}}$"},
            "count": {"type": "integer", "minimum": -index, "maximum": index % 1000 * 7},
            "kind": {"enum": [f"kind_{index + word}" for word in range(8)]},
        },
        required=[f"name_{index}", "kind"],
    )
