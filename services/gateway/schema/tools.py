"""The fields about tools: which there are, whether one must be called, and calls made before."""

from typing import Any

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import CALLS_MAX, NAME_CHARACTERS_MAX, TOOLS_MAX, Limits

_MODES = {
    "none": jobs.TOOL_MODE_NONE,
    "auto": jobs.TOOL_MODE_AUTO,
    "required": jobs.TOOL_MODE_REQUIRED,
}
_CHOICE_WANTED = '"none", "auto", "required" or {"type": "function", "function": {"name": …}}'
FORCING = (jobs.TOOL_MODE_REQUIRED, jobs.TOOL_MODE_NAMED)


def give_tools(chat: jobs.ChatInput, read: dict[str, Any]) -> None:
    """Move the fields of this room from what was read into the chat; checks that they agree."""
    chat.tools.extend(read.pop("tools", []))
    chat.single_tool_call = not read.pop("parallel_tool_calls", True)
    chat.template_arguments_json = read.pop("chat_template_kwargs", "")
    choice: jobs.ToolChoice | None = read.pop("tool_choice", None)
    if choice is not None:
        _check_choice(choice, chat)
    if chat.tools:
        chat.tool_choice.CopyFrom(choice or jobs.ToolChoice(mode=jobs.TOOL_MODE_AUTO))


def _check_choice(choice: jobs.ToolChoice, chat: jobs.ChatInput) -> None:
    if choice.mode in FORCING and not chat.tools:
        raise fields.conflict("tool_choice", "'tool_choice' asks for a call, but 'tools' is absent")
    if choice.mode == jobs.TOOL_MODE_NAMED and choice.name not in {t.name for t in chat.tools}:
        known = "the name of one of the tools"
        raise values.out_of_range("tool_choice.function.name", known, repr(choice.name))


def _tools(value: Any, param: str, limits: Limits) -> list[jobs.Tool]:
    # No tools at all is how some clients say that there are none.
    if value == []:
        return []
    items = values.array(value, param, TOOLS_MAX)
    tools = [_tool(item, f"{param}[{i}]", limits) for i, item in enumerate(items)]
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in names:
            at = f"{param}[{i}].function.name"
            raise values.out_of_range(at, "the only one of its name", repr(tool.name))
        names.add(tool.name)
    return tools


def _tool(value: Any, param: str, limits: Limits) -> jobs.Tool:
    document = values.mapping(value, param)
    _require_function(document, param)
    read = TOOL.read(document, limits, f"{param}.")
    fields.require(read, f"{param}.", function="an object with the function's name")
    tool: jobs.Tool = read["function"]
    return tool


def _require_function(document: dict[str, Any], param: str) -> None:
    """The one type that there is; said before any field of another type is."""
    kind = document.get("type")
    if kind is None:
        raise values.missing(f"{param}.type", "send 'function'")
    if values.string(kind, f"{param}.type") != "function":
        raise fields.unsupported(
            f"{param}.type", f"'{param}.type' {kind[:40]!r} is not supported; only 'function' is"
        )


def _function(value: Any, param: str, limits: Limits) -> jobs.Tool:
    read = FUNCTION.read(values.mapping(value, param), limits, f"{param}.")
    fields.require(read, f"{param}.", name="the function's name")
    return jobs.Tool(
        name=read["name"],
        description=read.get("description", ""),
        parameters_json=read.get("parameters", ""),
    )


def _parameters(value: Any, param: str, limits: Limits) -> str:
    kind = values.mapping(value, param).get("type", "object")
    if kind != "object":
        wanted = "'object', because arguments have names"
        raise values.out_of_range(f"{param}.type", wanted, repr(kind))
    return values.json_text(value, param, limits.grammar_bytes)


def _tool_choice(value: Any, param: str, limits: Limits) -> jobs.ToolChoice:
    if type(value) is str:
        return jobs.ToolChoice(mode=_MODES[values.word_of(value, param, tuple(_MODES))])
    if type(value) is not dict:
        raise values.wrong_type(param, _CHOICE_WANTED, value)
    _require_function(value, param)
    read = _NAMED_CHOICE.read(value, limits, f"{param}.")
    fields.require(read, f"{param}.", function='{"name": …}')
    return jobs.ToolChoice(mode=jobs.TOOL_MODE_NAMED, name=read["function"])


def _chosen(value: Any, param: str, limits: Limits) -> str:
    read = _CHOSEN.read(values.mapping(value, param), limits, f"{param}.")
    fields.require(read, f"{param}.", name="the name of one of the tools")
    name: str = read["name"]
    return name


def _template_arguments(value: Any, param: str, limits: Limits) -> str:
    return values.json_text(value, param, limits.template_bytes)


def calls(value: Any, param: str, limits: Limits) -> list[jobs.ToolCall]:
    """The calls of an assistant's message."""
    if value == []:
        return []
    items = values.array(value, param, CALLS_MAX)
    return [_call(item, f"{param}[{i}]", limits) for i, item in enumerate(items)]


def _call(value: Any, param: str, limits: Limits) -> jobs.ToolCall:
    document = values.mapping(value, param)
    _require_function(document, param)
    read = CALL.read(document, limits, f"{param}.")
    fields.require(read, f"{param}.", id="the call's id", function="its name and arguments")
    return jobs.ToolCall(id=read["id"], **read["function"])


def _called(value: Any, param: str, limits: Limits) -> dict[str, str]:
    read = _CALLED.read(values.mapping(value, param), limits, f"{param}.")
    fields.require(read, f"{param}.", name="the function's name", arguments="a string of JSON")
    return {"name": read["name"], "arguments_json": read["arguments"]}


def call_id(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, NAME_CHARACTERS_MAX)


_TYPE = Honoured("type", fields.text, {"const": "function"}, "Functions are the only tools.")
_NAME = Honoured(
    "name",
    fields.identifier,
    {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "Name of the function.",
)

FUNCTION = Fields(
    honoured=(
        _NAME,
        Honoured("description", fields.text, {"type": "string"}, "What it does, for the model."),
        Honoured("parameters", _parameters, {"type": "object"}, "JSON schema of its arguments."),
    ),
    inert=(
        Inert(
            "strict",
            (True, False),
            "The schema always binds a call that is asked for, and never one that the model decides"
            " on.",
        ),
    ),
)
TOOL = Fields(
    honoured=(
        _TYPE,
        Honoured("function", _function, fields.object_of(FUNCTION, "name"), "The function."),
    )
)
_CHOSEN = Fields(honoured=(_NAME,))
_NAMED_CHOICE = Fields(
    honoured=(_TYPE, Honoured("function", _chosen, fields.object_of(_CHOSEN, "name"), "Which."))
)
_CALLED = Fields(
    honoured=(
        _NAME,
        Honoured("arguments", fields.text, {"type": "string"}, "A JSON object, as text."),
    )
)
CALL = Fields(
    honoured=(
        Honoured("id", call_id, {"type": "string"}, "The id that the answer gave it."),
        _TYPE,
        Honoured("function", _called, fields.object_of(_CALLED, "name", "arguments"), "The call."),
    ),
    inert=(Inert("index", (), "Part of streamed answers that clients send back."),),
)

TOOLS = Honoured(
    "tools",
    _tools,
    {"type": "array", "items": fields.object_of(TOOL, "type", "function"), "maxItems": TOOLS_MAX},
    "Functions that the model may call.",
)
TEMPLATE_ARGUMENTS = Honoured(
    "chat_template_kwargs",
    _template_arguments,
    {"type": "object"},
    "Extension: variables for the model's chat template.",
)
TOOL_FIELDS: tuple[Honoured, ...] = (
    TOOLS,
    Honoured(
        "tool_choice",
        _tool_choice,
        {
            "anyOf": [
                {"enum": list(_MODES)},
                fields.object_of(_NAMED_CHOICE, "type", "function"),
            ]
        },
        "Whether a tool must be called, and which one; auto is the default.",
    ),
    Honoured(
        "parallel_tool_calls",
        fields.flag,
        {"type": "boolean", "default": True},
        "false: at most one call in the answer.",
    ),
    TEMPLATE_ARGUMENTS,
)
