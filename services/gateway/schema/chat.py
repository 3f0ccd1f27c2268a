"""The fields of /v1/chat/completions."""

from typing import Any

from services.gateway.schema import fields, sampling, shared, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.grammar import RESPONSE_FORMAT
from services.gateway.schema.limits import LOGPROBS_MAX
from services.gateway.schema.messages import MESSAGE, MESSAGES
from services.gateway.schema.tools import TOOL_FIELDS

__all__ = ["CHAT", "MESSAGE", "settle"]

CHAT = Fields(
    honoured=(
        MESSAGES,
        *shared.HONOURED,
        Honoured(
            "max_completion_tokens",
            sampling.count,
            {"type": "integer", "minimum": 0},
            "The newer name of max_tokens.",
        ),
        Honoured(
            "logprobs",
            fields.flag,
            {"type": "boolean", "default": False},
            "Log probabilities of the answer's tokens.",
        ),
        Honoured(
            "top_logprobs",
            sampling.logprobs,
            {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX},
            "This many alternatives beside each token; only with logprobs: true.",
        ),
        RESPONSE_FORMAT,
        *TOOL_FIELDS,
    ),
    inert=(
        *shared.INERT,
        Inert("modalities", (["text"],), "Text is the only modality."),
        Inert("service_tier", ("auto", "default"), "There is one tier."),
        Inert("verbosity", ("medium",), "The model decides how much it says."),
        Inert("prompt_cache_key", (), "Prefixes are shared by content, not by key."),
        Inert("prompt_cache_retention", (), "Prefixes are kept while there is room."),
        Inert("prompt_cache_options", (), "Prefixes are kept while there is room."),
        Inert("safety_identifier", (), "Kept nowhere."),
        Inert("add_generation_prompt", (True,), "The prompt ends where the assistant begins."),
        Inert("continue_final_message", (False,), "The answer is a message of its own."),
        Inert("echo", (False,), "A chat is not repeated."),
    ),
    refused=(
        *shared.REFUSED,
        "audio",
        "prediction",
        "reasoning_effort",
        "web_search_options",
        "moderation",
        "functions",
        "function_call",
        "chat_template",
        "documents",
    ),
    instead={
        **shared.INSTEAD,
        "functions": "use 'tools'",
        "function_call": "use 'tool_choice'",
        "reasoning_effort": "use 'chat_template_kwargs' where the model's template has a switch",
        "documents": "use 'chat_template_kwargs'",
        "chat_template": "the model's own template is used",
    },
)


def settle(read: dict[str, Any]) -> None:
    """What no single field can see; leaves one name for the bound and a number for logprobs."""
    fields.require(read, "", messages="an array of {role, content}")
    old, new = read.get("max_tokens"), read.pop("max_completion_tokens", None)
    if old is not None and new is not None and old != new:
        raise fields.conflict(
            "max_completion_tokens",
            "'max_completion_tokens' and 'max_tokens' disagree; send one of them",
        )
    if new is not None:
        if new == 0 and "prompt_logprobs" not in read:
            raise values.out_of_range("max_completion_tokens", "at least 1", new)
        read["max_tokens"] = new
    alternatives = read.pop("top_logprobs", None)
    if read.pop("logprobs", False):
        read["logprobs"] = alternatives or 0
    elif alternatives:
        raise fields.conflict("top_logprobs", "'top_logprobs' is only allowed with logprobs: true")
