"""The language of answers that consist of tool calls, for the engine to draw from."""

import json
from collections.abc import Callable, Mapping

from deepflow.v1 import jobs_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.tools.formats import ToolFormat

# What is wrong with the language is wrong with a schema, or with all together: the rest is ours.
PARAM = "tools"
# A tool without a schema takes no arguments, as at OpenAI.
NO_ARGUMENTS = '{"type": "object", "properties": {}, "additionalProperties": false}'
# As templates write the calls of earlier turns. Free blanks could go on for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def forced_calls(
    tools: Mapping[int, jobs_pb2.Tool],
    form: ToolFormat,
    *,
    is_single: bool,
    id_of: Callable[[str], int | None],
) -> types.Grammar:
    """One call of one of the tools, or any number of them; `id_of` knows single tokens.

    The tools stand under their places in the request, which errors name.
    """
    layout = form.layout
    open_tag, close_tag = _tag(layout.open_tag, id_of), _tag(layout.close_tag, id_of)
    more = "" if is_single else f" ({_text(layout.between_calls)} call)*"
    rules = [f"start: call{more}", f"call: {' | '.join(f'call_{i}' for i in tools)}"]
    for i, tool in tools.items():
        before = layout.before_name + tool.name + layout.before_arguments
        parts = (open_tag, _text(before), f"arguments_{i}", _text(layout.end), close_tag)
        rules.append(f"call_{i}: {' '.join(part for part in parts if part)}")
        # The schema is a document of its own, so that its references point where they should.
        rules.append(f"arguments_{i}: %json {_schema(tool)}")
    params = [f"{PARAM}[{i}].function.parameters" for i in tools]
    return types.Grammar(lark="\n".join(rules) + "\n", param=PARAM, part_params=params)


def _schema(tool: jobs_pb2.Tool) -> str:
    """On one line, as the language wants it, and of an object whatever it leaves open."""
    schema = json.loads(tool.parameters_json or NO_ARGUMENTS)
    if not {"type", "$ref", "anyOf", "oneOf", "allOf"} & schema.keys():
        schema["type"] = "object"
    schema["x-guidance"] = _SPACING
    return json.dumps(schema)


def _tag(tag: str, id_of: Callable[[str], int | None]) -> str:
    if not tag:
        return ""
    token_id = id_of(tag)
    # A token of the vocabulary is no text to the engine, however its name is spelled.
    return _text(tag) if token_id is None else f"<[{token_id}]>"


def _text(text: str) -> str:
    return json.dumps(text)
