"""The fields that bind the answer to a language: response_format, guided_* and structured_outputs.

Nothing is compiled here. A schema or expression is only bounded; the engine refuses a bad one
before the job is admitted, and names the field that `Grammar.param` carries.
"""

from typing import Any

import msgspec

from deepflow.errors import InvalidRequest
from deepflow.v1 import types_pb2 as types
from services.gateway.schema import fields, values
from services.gateway.schema.body import check_shape
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import GRAMMAR_CHOICES_MAX, Limits

FORMATS = ("text", "json_object", "json_schema")
ANY_OBJECT = '{"type":"object"}'


def take_grammar(read: dict[str, Any]) -> types.Grammar | None:
    """The one grammar of what was read; more than one is an error."""
    found: types.Grammar | None = None
    for name in ("response_format", *(field.name for field in GUIDED)):
        grammar = read.pop(name, None)
        if grammar is None:
            continue
        if found is not None:
            first = found.param.split(".", 1)[0]
            raise fields.conflict(name, f"'{name}' and '{first}' both bind the answer; send one")
        found = grammar
    return found


def response_format(value: Any, param: str, limits: Limits) -> types.Grammar | None:
    """None for free text."""
    document = values.mapping(value, param)
    if document.get("type") is None:
        raise values.missing(f"{param}.type", f"one of {', '.join(FORMATS)}")
    kind = values.word_of(document["type"], f"{param}.type", FORMATS)
    if kind == "json_schema":
        read = _NAMED_SCHEMA_FORMAT.read(document, limits, f"{param}.")
        fields.require(read, f"{param}.", json_schema="an object with a name and a schema")
        schema: str = read["json_schema"]
        return types.Grammar(json_schema=schema, param=f"{param}.json_schema.schema")
    _PLAIN_FORMAT.read(document, limits, f"{param}.")
    if kind == "json_object":
        return types.Grammar(json_schema=ANY_OBJECT, param=param)
    return None


def _named_schema(value: Any, param: str, limits: Limits) -> str:
    read = JSON_SCHEMA.read(values.mapping(value, param), limits, f"{param}.")
    fields.require(read, f"{param}.", name="a name for the schema", schema="a JSON schema")
    schema: str = read["schema"]
    return schema


def _schema(value: Any, param: str, limits: Limits) -> str:
    return values.json_text(value, param, limits.grammar_bytes)


def _guided_json(value: Any, param: str, limits: Limits) -> types.Grammar:
    if type(value) is str:
        value = _parsed(value, param, limits)
    return types.Grammar(json_schema=_schema(value, param, limits), param=param)


def _parsed(text: str, param: str, limits: Limits) -> Any:
    try:
        check_shape(text.encode(), limits.json_depth)
        return msgspec.json.decode(text)
    except (InvalidRequest, msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"'{param}' is not the text of a JSON schema: {error}",
            param=param,
            reason="invalid_grammar",
        ) from error


def _guided_regex(value: Any, param: str, limits: Limits) -> types.Grammar:
    return types.Grammar(regex=values.name(value, param, limits.grammar_bytes), param=param)


def _guided_choice(value: Any, param: str, limits: Limits) -> types.Grammar:
    items = values.array(value, param, GRAMMAR_CHOICES_MAX)
    words = [
        values.name(item, f"{param}[{i}]", limits.grammar_bytes) for i, item in enumerate(items)
    ]
    if (total := sum(map(len, words))) > limits.grammar_bytes:
        raise values.out_of_range(param, f"at most {limits.grammar_bytes} characters", total)
    return types.Grammar(choice=types.Strings(values=words), param=param)


def _structured_outputs(value: Any, param: str, limits: Limits) -> types.Grammar:
    read = STRUCTURED_OUTPUTS.read(values.mapping(value, param), limits, f"{param}.")
    if len(read) != 1:
        names = ", ".join(field.name for field in STRUCTURED_OUTPUTS.honoured)
        raise fields.conflict(param, f"'{param}' must hold exactly one of {names}")
    grammar: types.Grammar = read.popitem()[1]
    return grammar


def _anything(value: Any, _param: str, _limits: Limits) -> Any:
    return value


_SCHEMA_SHAPE = {"anyOf": [{"type": "object"}, {"type": "string"}]}
_CHOICE_SHAPE = {
    "type": "array",
    "items": {"type": "string"},
    "minItems": 1,
    "maxItems": GRAMMAR_CHOICES_MAX,
}

JSON_SCHEMA = Fields(
    honoured=(
        Honoured("name", fields.identifier, {"type": "string"}, "A name, for people."),
        Honoured("schema", _schema, {"type": "object"}, "The JSON schema of the answer."),
        Honoured("description", fields.text, {"type": "string"}, "What it is for."),
    ),
    inert=(Inert("strict", (True, False), "The schema always binds, with either value."),),
)
_NAMED_SCHEMA_FORMAT = Fields(
    honoured=(
        Honoured("type", _anything, {"const": "json_schema"}, "The kind."),
        Honoured("json_schema", _named_schema, fields.object_of(JSON_SCHEMA), "Name and schema."),
    )
)
_PLAIN_FORMAT = Fields(honoured=(Honoured("type", _anything, {"type": "string"}, "The kind."),))

_JSON = Honoured(
    "json", _guided_json, _SCHEMA_SHAPE, "The answer is a JSON text that this schema allows."
)
_REGEX = Honoured(
    "regex", _guided_regex, {"type": "string"}, "The whole answer matches this expression."
)
_CHOICE = Honoured("choice", _guided_choice, _CHOICE_SHAPE, "The answer is one of these strings.")

STRUCTURED_OUTPUTS = Fields(
    honoured=(_JSON, _REGEX, _CHOICE),
    inert=(
        Inert("disable_fallback", (True, False), "There is one engine of grammars."),
        Inert("disable_any_whitespace", (False,), "White space is allowed where JSON allows it."),
    ),
    refused=("grammar", "json_object", "structural_tag", "whitespace_pattern"),
)

RESPONSE_FORMAT = Honoured(
    "response_format",
    response_format,
    {
        "type": "object",
        "properties": {
            "type": {"enum": list(FORMATS)},
            "json_schema": fields.object_of(JSON_SCHEMA, "name", "schema"),
        },
        "required": ["type"],
    },
    "Free text, any JSON object, or JSON that a schema allows.",
)

GUIDED: tuple[Honoured, ...] = (
    Honoured("guided_json", _guided_json, _SCHEMA_SHAPE, f"Extension. {_JSON.meaning}"),
    Honoured("guided_regex", _guided_regex, _REGEX.shape, f"Extension. {_REGEX.meaning}"),
    Honoured("guided_choice", _guided_choice, _CHOICE_SHAPE, f"Extension. {_CHOICE.meaning}"),
    Honoured(
        "structured_outputs",
        _structured_outputs,
        fields.object_of(STRUCTURED_OUTPUTS),
        "Extension: exactly one of json, regex and choice, as guided_json and the others.",
    ),
)
