"""The messages of a chat: who speaks, what is said, which tools were called."""

from typing import Any

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, tools, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import NAME_CHARACTERS_MAX, Limits

ROLES = ("system", "developer", "user", "assistant", "tool")

# What only messages of one role may carry.
_BELONGS_TO = {"tool_calls": "assistant", "refusal": "assistant", "tool_call_id": "tool"}


def _messages(value: Any, param: str, limits: Limits) -> jobs.ChatInput:
    items = values.array(value, param, limits.messages)
    return jobs.ChatInput(
        messages=[_message(item, f"{param}[{i}]", limits) for i, item in enumerate(items)]
    )


def _message(value: Any, param: str, limits: Limits) -> jobs.ChatMessage:
    document = values.mapping(value, param)
    read = MESSAGE.read(document, limits, f"{param}.")
    fields.require(read, f"{param}.", role=f"one of {', '.join(ROLES)}")
    role: str = read["role"]
    for name, owner in _BELONGS_TO.items():
        if read.get(name) and role != owner:
            at = f"{param}.{name}"
            raise fields.conflict(at, f"'{at}' is only allowed in a message of role '{owner}'")
    if role == "assistant":
        _require_something_said(read, param)
    else:
        _require_no_refusal_part(document, param)
        fields.require(read, f"{param}.", content="the text")
    if role == "tool":
        fields.require(read, f"{param}.", tool_call_id="the id of the call that it answers")
    return jobs.ChatMessage(**read)


def _require_something_said(read: dict[str, Any], param: str) -> None:
    """An assistant's message may lack content where it refused or called tools."""
    refusal = read.pop("refusal", None)
    if "content" not in read and refusal:
        read["content"] = refusal
    if "content" not in read and not read.get("tool_calls"):
        raise values.missing(f"{param}.content", "the text, unless there are tool_calls")


def _require_no_refusal_part(document: dict[str, Any], param: str) -> None:
    content = document.get("content")
    for i, part in enumerate(content if type(content) is list else ()):
        if part["type"] == "refusal":
            at = f"{param}.content[{i}].type"
            raise fields.unsupported(at, f"'{at}' 'refusal' is only for role 'assistant'")


def _role(value: Any, param: str, _limits: Limits) -> str:
    role = values.string(value, param)
    if role == "function":
        raise fields.unsupported(
            param, f"'{param}': the role 'function' is not supported; use 'tool' with tool_call_id"
        )
    return values.word_of(role, param, ROLES)


def _content(value: Any, param: str, limits: Limits) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise values.wrong_type(param, "a string or an array of text parts", value)
    parts = values.array(value, param, limits.messages)
    return "\n".join(_part(part, f"{param}[{i}]", limits) for i, part in enumerate(parts))


def _part(value: Any, param: str, limits: Limits) -> str:
    part = values.mapping(value, param)
    kind = part.get("type")
    if kind is None:
        raise values.missing(f"{param}.type", "send 'text'")
    table = _PARTS.get(values.string(kind, f"{param}.type"))
    if table is None:
        raise fields.unsupported(
            f"{param}.type", f"'{param}.type' {kind[:40]!r} is not supported; only 'text' is"
        )
    read = table.read(part, limits, f"{param}.")
    if kind not in read:
        raise values.missing(f"{param}.{kind}", "the part's text")
    said: str = read[kind]
    return said


def _name(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, NAME_CHARACTERS_MAX)


def _part_table(kind: str, *refused: str) -> Fields:
    return Fields(
        honoured=(
            Honoured("type", fields.text, {"const": kind}, "Kind of the part."),
            Honoured(kind, fields.text, {"type": "string"}, "Its text."),
        ),
        refused=("image_url", "input_audio", "file", "prompt_cache_breakpoint", *refused),
    )


_PARTS = {"text": _part_table("text", "refusal"), "refusal": _part_table("refusal", "text")}

MESSAGE = Fields(
    honoured=(
        Honoured("role", _role, {"enum": list(ROLES)}, "Who speaks."),
        Honoured(
            "content",
            _content,
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "type": {"enum": list(_PARTS)},
                                "text": {"type": "string"},
                                "refusal": {"type": "string"},
                            },
                            "required": ["type"],
                        },
                    },
                    {"type": "null"},
                ]
            },
            "The text, or parts that are joined by line breaks: text, of an assistant also"
            " refusal. May be absent beside tool_calls.",
        ),
        Honoured("name", _name, {"type": "string"}, "Name of the speaker."),
        Honoured(
            "tool_calls",
            tools.calls,
            {
                "type": "array",
                "items": fields.object_of(tools.CALL, "id", "type", "function"),
            },
            "Of an assistant: the calls that it made.",
        ),
        Honoured(
            "tool_call_id",
            tools.call_id,
            {"type": "string"},
            "Of a tool: the call that this message answers; required there.",
        ),
        Honoured(
            "refusal",
            fields.text,
            {"type": "string"},
            "Of an assistant: what it said where it refused; stands for absent content.",
        ),
    ),
    inert=(Inert("annotations", ([],), "Part of OpenAI's answers that clients send back."),),
    refused=("function_call", "audio", "reasoning_content"),
    instead={"function_call": "use 'tool_calls'"},
)

MESSAGES = Honoured(
    "messages",
    _messages,
    {"type": "array", "minItems": 1, "items": fields.object_of(MESSAGE, "role")},
    "The conversation so far.",
)
