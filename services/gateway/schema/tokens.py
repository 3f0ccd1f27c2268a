"""The fields of /tokenize and /detokenize."""

from typing import Any

import msgspec

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, shared, values
from services.gateway.schema.completion import token_ids
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import Limits
from services.gateway.schema.messages import MESSAGES
from services.gateway.schema.tools import TEMPLATE_ARGUMENTS, TOOLS, give_tools

# Of one call; more than any model's context holds.
TOKENS_MAX = 1024 * 1024
_ONLY_WITH_MESSAGES = ("tools", "chat_template_kwargs")


class TokenizeCall(msgspec.Struct, frozen=True):
    request: jobs.TokenizeRequest
    return_token_strs: bool


def read_tokenize(document: dict[str, Any], limits: Limits) -> TokenizeCall:
    read = TOKENIZE.read(document, limits)
    fields.require(read, "", model="the name of a deployment; see /v1/models")
    request = jobs.TokenizeRequest(
        model=read["model"], add_special_tokens=read.get("add_special_tokens")
    )
    if "messages" in read:
        if "prompt" in read:
            raise fields.conflict("prompt", "'prompt' and 'messages' are both there; send one")
        chat = read.pop("messages")
        give_tools(chat, read)
        request.chat.CopyFrom(chat)
    else:
        fields.require(read, "", prompt="a text, or send messages")
        for name in _ONLY_WITH_MESSAGES:
            if name in read:
                raise fields.conflict(name, f"'{name}' is only allowed with messages")
        request.text = read["prompt"]
    return TokenizeCall(request, read.get("return_token_strs", False))


def read_detokenize(document: dict[str, Any], limits: Limits) -> jobs.DetokenizeRequest:
    read = DETOKENIZE.read(document, limits)
    fields.require(
        read, "", model="the name of a deployment; see /v1/models", tokens="an array of token ids"
    )
    return jobs.DetokenizeRequest(model=read["model"], token_ids=read["tokens"])


def check_ids(request: jobs.DetokenizeRequest, vocab_size: int) -> None:
    """Every id must name a token of the model."""
    ids = request.token_ids
    if ids and max(ids) >= vocab_size:
        i = next(i for i, token_id in enumerate(ids) if token_id >= vocab_size)
        raise values.unknown_token(f"tokens[{i}]", vocab_size, ids[i])


def _tokens(value: Any, param: str, _limits: Limits) -> list[int]:
    if type(value) is not list:
        raise values.wrong_type(param, "an array of token ids", value)
    if len(value) > TOKENS_MAX:
        raise values.out_of_range(param, f"an array of at most {TOKENS_MAX} ids", len(value))
    return token_ids(value, param) if value else []


TOKENIZE = Fields(
    honoured=(
        shared.MODEL,
        Honoured("prompt", fields.text, {"type": "string"}, "The text; or send messages."),
        MESSAGES,
        TOOLS,
        TEMPLATE_ARGUMENTS,
        Honoured(
            "add_special_tokens",
            fields.flag,
            {"type": "boolean"},
            "Whether the tokenizer adds its own; absent: yes for a prompt, no for messages.",
        ),
        Honoured(
            "return_token_strs",
            fields.flag,
            {"type": "boolean", "default": False},
            "Also answer the tokens as the vocabulary spells them.",
        ),
    ),
    inert=(
        Inert("add_generation_prompt", (True,), "The prompt ends where the assistant begins."),
        Inert("continue_final_message", (False,), "Every message is complete."),
    ),
    refused=("chat_template", "mm_processor_kwargs"),
    instead={"chat_template": "the model's own template is used"},
)

DETOKENIZE = Fields(
    honoured=(
        shared.MODEL,
        Honoured(
            "tokens",
            _tokens,
            {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "The token ids.",
        ),
    )
)
