"""The fields of /v1/context_caches."""

from typing import Any

import msgspec

from deepflow.v1 import contexts_pb2 as contexts
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import completion, fields, shared, values
from services.gateway.schema.completion import read_prompts
from services.gateway.schema.fields import Fields, Honoured
from services.gateway.schema.limits import Limits
from services.gateway.schema.messages import MESSAGES
from services.gateway.schema.tools import TEMPLATE_ARGUMENTS, TOOLS, give_tools

TTL_SECONDS, TTL_SECONDS_MIN, TTL_SECONDS_MAX = 3600.0, 1.0, 7 * 24 * 3600.0
NAME_CHARACTERS_MAX = 128
_ONLY_WITH_MESSAGES = ("tools", "chat_template_kwargs")
_WANTED = "an array of {role, content}, or send a prompt"


class ContextCacheCall(msgspec.Struct, frozen=True):
    model: str
    content: contexts.ContextContent
    name: str = ""
    ttl_seconds: float = TTL_SECONDS
    pin: bool = False

    @property
    def work(self) -> jobs.ChatInput | jobs.CompletionInput:
        """The content in the words of a job."""
        if self.content.HasField("chat"):
            return self.content.chat
        return jobs.CompletionInput(prompts=[self.content.prompt])

    def check_ids(self, vocab_size: int) -> None:
        """Every token id must name a token of the model."""
        if isinstance(self.work, jobs.CompletionInput):
            completion.check_token_ids(self.work, vocab_size)


def read_context_cache(document: dict[str, Any], limits: Limits) -> ContextCacheCall:
    read = CONTEXT_CACHE.read(document, limits)
    fields.require(read, "", model="the name of a deployment; see /v1/models")
    content = _content(read)
    return ContextCacheCall(content=content, **read)


def _content(read: dict[str, Any]) -> contexts.ContextContent:
    if "prompt" not in read:
        fields.require(read, "", messages=_WANTED)
        chat: jobs.ChatInput = read.pop("messages")
        give_tools(chat, read)
        return contexts.ContextContent(chat=chat)
    if "messages" in read:
        raise fields.conflict("prompt", "'prompt' and 'messages' are both there; send one")
    for name in _ONLY_WITH_MESSAGES:
        if name in read:
            raise fields.conflict(name, f"'{name}' is only allowed with messages")
    return contexts.ContextContent(prompt=read.pop("prompt"))


def _prompt(value: Any, param: str, _limits: Limits) -> jobs.Prompt:
    (prompt,) = read_prompts(value, param, 1)
    return prompt


def _ttl(value: Any, param: str, _limits: Limits) -> float:
    return values.number(value, param, TTL_SECONDS_MIN, TTL_SECONDS_MAX)


def _name(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, NAME_CHARACTERS_MAX)


CONTEXT_CACHE = Fields(
    honoured=(
        shared.MODEL,
        MESSAGES,
        Honoured(
            "prompt",
            _prompt,
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}},
                ]
            },
            "Text or token ids that completions begin with; instead of messages.",
        ),
        TOOLS,
        TEMPLATE_ARGUMENTS,
        Honoured(
            "ttl_seconds",
            _ttl,
            {
                "type": "number",
                "minimum": TTL_SECONDS_MIN,
                "maximum": TTL_SECONDS_MAX,
                "default": TTL_SECONDS,
            },
            "How long it lives.",
        ),
        Honoured(
            "pin",
            fields.flag,
            {"type": "boolean", "default": False},
            "Its KV never leaves the device before it expires.",
        ),
        Honoured("name", _name, {"type": "string"}, "Your own words for it, shown in lists."),
    )
)
