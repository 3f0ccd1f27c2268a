"""The fields of /v1/chat/completions."""

from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import NAME_CHARACTERS_MAX, Limits

ROLES = ("system", "developer", "user", "assistant")


def _role(value: Any, param: str, _limits: Limits) -> str:
    role = values.string(value, param)
    if role in ("tool", "function"):
        raise fields.unsupported(param, f"'{param}': the role '{role}' is not supported yet")
    if role not in ROLES:
        raise values.out_of_range(param, f"one of {', '.join(ROLES)}", repr(role))
    return role


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
    if values.string(kind, f"{param}.type") != "text":
        raise fields.unsupported(
            f"{param}.type", f"'{param}.type' {kind[:40]!r} is not supported yet; only 'text' is"
        )
    read = _TEXT_PART.read(part, limits, f"{param}.")
    if "text" not in read:
        raise values.missing(f"{param}.text", "the part's text")
    text: str = read["text"]
    return text


def _text(value: Any, param: str, _limits: Limits) -> str:
    return values.string(value, param)


def _name(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, NAME_CHARACTERS_MAX)


def _messages(value: Any, param: str, limits: Limits) -> jobs.ChatInput:
    items = values.array(value, param, limits.messages)
    return jobs.ChatInput(
        messages=[_message(item, f"{param}[{i}]", limits) for i, item in enumerate(items)]
    )


def _message(value: Any, param: str, limits: Limits) -> jobs.ChatMessage:
    read = MESSAGE.read(values.mapping(value, param), limits, f"{param}.")
    for required, wanted in (("role", f"one of {', '.join(ROLES)}"), ("content", "the text")):
        if required not in read:
            raise values.missing(f"{param}.{required}", wanted)
    return jobs.ChatMessage(**read)


_TEXT_PART = Fields(
    honoured=(
        Honoured("type", _text, {"const": "text"}, "Kind of the part."),
        Honoured("text", _text, {"type": "string"}, "Its text."),
    ),
    inert=(),
    refused=("image_url", "input_audio", "file", "refusal", "prompt_cache_breakpoint"),
)

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
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                            "required": ["type", "text"],
                        },
                    },
                ]
            },
            "The text, or text parts that are joined by line breaks.",
        ),
        Honoured("name", _name, {"type": "string"}, "Name of the speaker."),
    ),
    inert=(
        Inert("tool_calls", ([],), "Tools are not supported yet."),
        Inert("refusal", ("",), "Nothing is refused by the model."),
        Inert("annotations", ([],), "Part of OpenAI's answers that clients send back."),
    ),
    refused=("tool_call_id", "function_call", "audio", "reasoning_content"),
)

CHAT = Fields(
    honoured=(
        Honoured(
            "messages",
            _messages,
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": fields.schema_of(MESSAGE.honoured),
                    "required": ["role", "content"],
                },
            },
            "The conversation so far.",
        ),
        *fields.SHARED_HONOURED,
        Honoured(
            "max_completion_tokens",
            fields.max_tokens,
            {"type": "integer", "minimum": 1},
            "The newer name of max_tokens.",
        ),
    ),
    inert=(
        *fields.SHARED_INERT,
        Inert("metadata", (), "Kept nowhere."),
        Inert("store", (False,), "Nothing is stored."),
        Inert("logprobs", (False,), "No log probabilities are returned."),
        Inert("top_logprobs", (0,), "No log probabilities are returned."),
        Inert("modalities", (["text"],), "Text is the only modality."),
        Inert("response_format", ({"type": "text"},), "The answer is free text."),
        Inert("tools", ([],), "There are no tools to call."),
        Inert("tool_choice", ("none", "auto"), "There are no tools to call."),
        Inert("parallel_tool_calls", (True, False), "There are no tools to call."),
        Inert("functions", ([],), "There are no functions to call."),
        Inert("function_call", ("none", "auto"), "There are no functions to call."),
        Inert("service_tier", ("auto", "default"), "There is one tier."),
        Inert("verbosity", ("medium",), "The model decides how much it says."),
        Inert("prompt_cache_key", (), "Prefixes are shared by content, not by key."),
        Inert("prompt_cache_retention", (), "Prefixes are kept while there is room."),
        Inert("prompt_cache_options", (), "Prefixes are kept while there is room."),
        Inert("safety_identifier", (), "Kept nowhere."),
    ),
    refused=("audio", "prediction", "reasoning_effort", "web_search_options", "moderation"),
)


def check(read: dict[str, Any]) -> None:
    """What no single field can see."""
    if "messages" not in read:
        raise values.missing("messages", "an array of {role, content}")
    old, new = read.get("max_tokens"), read.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            "'max_completion_tokens' and 'max_tokens' disagree; send one of them",
            param="max_completion_tokens",
            reason="conflicting_fields",
        )
