"""What is wrong with a grammar before anything is compiled: cheap, and clear about the limit."""

from collections.abc import Iterator
from typing import Any

import msgspec

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.endings import find_endless_part
from services.task_executor.flowserve.grammar.repetitions import find_repetition_fault
from services.task_executor.flowserve.grammar.sources import (
    EMBEDDED_SCHEMA,
    GrammarError,
    embedded_schemas,
)

KINDS = ("json_schema", "regex", "choice", "lark")
_LEAST_COUNTS = ("minLength", "minItems", "minProperties")


def check_size(grammar: Grammar) -> None:
    """Cheap. Raises GrammarError where nobody should even look at the grammar."""
    if grammar.kind not in KINDS:
        raise GrammarError(
            f"the grammar's kind is {grammar.kind!r}, but must be one of {', '.join(KINDS)}"
        )
    size = len(grammar.source.encode(errors="replace"))
    if size > limits.SOURCE_BYTES_MAX:
        raise GrammarError(f"the grammar has {size} bytes, but may have {limits.SOURCE_BYTES_MAX}")


def check(grammar: Grammar) -> None:
    """Takes milliseconds for large ones. Raises GrammarError where it may not be compiled."""
    check_size(grammar)
    if fault := _content_fault(grammar):
        raise GrammarError(fault)
    for part, schema in embedded_schemas(grammar).items():
        if fault := _schema_text_fault(schema):
            raise GrammarError(fault, part)


def _content_fault(grammar: Grammar) -> str:
    """A sentence for the caller; empty where the grammar may be compiled."""
    match grammar.kind:
        case "json_schema":
            return _schema_text_fault(grammar.source)
        case "regex":
            return _expression_fault(grammar.source)
        case "choice":
            return _choice_fault(grammar.source)
    return _rules_fault(grammar.source)


def _expression_fault(source: str) -> str:
    # Left to the compiler, it would be dropped without a word.
    if (len(source) - len(source.rstrip("\\"))) % 2:
        return "the expression ends in a backslash that escapes nothing"
    return find_repetition_fault(source)


def _schema_text_fault(source: str) -> str:
    try:
        schema = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"the JSON schema is not JSON: {error}"
    if not isinstance(schema, dict | bool):
        return "the JSON schema must be an object"
    return _schema_fault(schema) or _endless_fault(source, schema)


def _schema_fault(schema: Any) -> str:
    """Looks at every value, keyword or not: what is no keyword is no reason to be large."""
    for depth, value in _walk(schema):
        if depth > limits.DEPTH_MAX:
            return f"the JSON schema is nested deeper than {limits.DEPTH_MAX} levels"
        if isinstance(value, dict) and (fault := _object_fault(value)):
            return fault
    return ""


def _endless_fault(source: str, schema: Any) -> str:
    # Without a reference nothing needs itself; one may be spelled with escapes.
    if "$ref" not in source and "\\u" not in source:
        return ""
    place = find_endless_part(schema)
    return f"no answer to {place} comes to an end, because it needs itself" if place else ""


def _walk(root: Any) -> Iterator[tuple[int, Any]]:
    stack: list[tuple[int, Any]] = [(0, root)] if isinstance(root, dict) else []
    while stack:
        depth, value = stack.pop()
        yield depth, value
        inner = value.values() if isinstance(value, dict) else value
        if depth <= limits.DEPTH_MAX:
            stack += [(depth + 1, item) for item in inner if isinstance(item, dict | list)]


def _object_fault(part: dict[str, Any]) -> str:
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > limits.PROPERTIES_MAX:
        return (
            f"the JSON schema has an object with {len(properties)} properties, "
            f"but an object may have {limits.PROPERTIES_MAX}"
        )
    for name in _LEAST_COUNTS:
        count = part.get(name)
        if isinstance(count, int | float) and count > limits.FORCED_CHARACTERS_MAX:
            return f"{name} is {count}, but may be {limits.FORCED_CHARACTERS_MAX}"
    pattern = part.get("pattern")
    if isinstance(pattern, str) and (fault := find_repetition_fault(pattern)):
        return f"in the JSON schema's pattern: {fault}"
    return _values_fault(part)


def _values_fault(part: dict[str, Any]) -> str:
    values = part.get("enum")
    if not isinstance(values, list):
        values = []
    if len(values) > limits.ENUM_VALUES_MAX:
        return f"an enum has {len(values)} values, but may have {limits.ENUM_VALUES_MAX}"
    for value in (*values, part.get("const")):
        if isinstance(value, str) and (fault := _literal_fault(value)):
            return fault
    return ""


def _choice_fault(source: str) -> str:
    try:
        choices = msgspec.json.decode(source, type=list[str])
    except msgspec.MsgspecError:
        return "the choices must be a JSON array of strings"
    if not choices:
        return "there is no choice to choose from"
    if len(choices) > limits.ENUM_VALUES_MAX:
        return f"there are {len(choices)} choices, but there may be {limits.ENUM_VALUES_MAX}"
    return next(filter(None, map(_literal_fault, choices)), "")


def _literal_fault(text: str) -> str:
    if len(text) <= limits.FORCED_CHARACTERS_MAX:
        return ""
    return (
        f"a fixed text of the grammar has {len(text)} characters, "
        f"but may have {limits.FORCED_CHARACTERS_MAX}"
    )


def _rules_fault(source: str) -> str:
    """Every line as an expression; the schemas in it are judged as schemas."""
    rules = (line.partition(EMBEDDED_SCHEMA)[0] for line in source.splitlines())
    return next(filter(None, map(find_repetition_fault, rules)), "")
