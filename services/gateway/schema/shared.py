"""The fields that both generating routes have beside sampling and grammars."""

import re
from typing import Any

from services.gateway.schema import fields, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.grammar import GUIDED
from services.gateway.schema.limits import Limits
from services.gateway.schema.sampling import SAMPLING


def model(value: Any, param: str, _limits: Limits) -> str:
    return values.name(value, param, 256)


_CONTEXT_CACHE_ID = re.compile(r"ctx-[0-9a-f]{32}")

MODEL = Honoured("model", model, {"type": "string"}, "Name of a deployment; see /v1/models.")


def _context_cache_id(value: Any, param: str, _limits: Limits) -> str:
    text = values.string(value, param)
    if not _CONTEXT_CACHE_ID.fullmatch(text):
        wanted = "an id that POST /v1/context_caches answered, as ctx-0123456789abcdef…"
        raise values.out_of_range(param, wanted, repr(text))
    return text


def _n(value: Any, param: str, limits: Limits) -> int:
    return values.integer(value, param, 1, limits.n)


def _stream_options(value: Any, param: str, limits: Limits) -> dict[str, Any]:
    return STREAM_OPTIONS.read(values.mapping(value, param), limits, f"{param}.")


STREAM_OPTIONS = Fields(
    honoured=(
        Honoured(
            "include_usage",
            fields.flag,
            {"type": "boolean"},
            "One more chunk before [DONE] that carries the usage.",
        ),
    ),
    inert=(
        Inert("include_obfuscation", (False,), "No padding is ever added."),
        Inert("continuous_usage_stats", (False,), "Usage comes once, at the end."),
    ),
)

HONOURED: tuple[Honoured, ...] = (
    MODEL,
    *SAMPLING,
    Honoured("n", _n, {"type": "integer", "minimum": 1, "default": 1}, "Choices per prompt."),
    Honoured(
        "stream",
        fields.flag,
        {"type": "boolean", "default": False},
        "Answer as server-sent events.",
    ),
    Honoured(
        "stream_options",
        _stream_options,
        {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "Only with stream: true.",
    ),
    Honoured("user", fields.text, {"type": "string"}, "Your end user; written to the request log."),
    *GUIDED,
    Honoured(
        "context_cache_id",
        _context_cache_id,
        {"type": "string"},
        "Extension: what was given to /v1/context_caches comes first, then what is given here.",
    ),
    Honoured(
        "return_token_ids",
        fields.flag,
        {"type": "boolean", "default": False},
        "Extension: each choice (each chunk of a stream) carries `token_ids`, the ids of its new"
        " tokens, and the answer `prompt_token_ids`.",
    ),
)

INERT: tuple[Inert, ...] = (
    Inert("metadata", (), "Kept nowhere."),
    Inert("store", (False,), "Nothing is stored."),
    Inert("use_beam_search", (False,), "Tokens are drawn one after another."),
    Inert("length_penalty", (1,), "Only beam search has one."),
    Inert("include_stop_str_in_output", (False,), "A stop string is not part of the answer."),
    Inert("spaces_between_special_tokens", (True,), "Text is what the tokenizer makes of it."),
)

REFUSED = (
    "allowed_token_ids",
    "bad_words",
    "guided_grammar",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "truncate_prompt_tokens",
    "return_tokens_as_token_ids",
    "logits_processors",
)

INSTEAD = {
    "guided_grammar": "use 'guided_json', 'guided_regex' or 'guided_choice'",
    "return_tokens_as_token_ids": "use 'return_token_ids'",
}
