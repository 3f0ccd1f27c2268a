"""The fields that say how tokens are drawn; both generating routes share them."""

from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import types_pb2 as types
from services.gateway.schema import fields, values
from services.gateway.schema.fields import Honoured
from services.gateway.schema.limits import (
    COUNT_MAX,
    LOGIT_BIAS_MAX,
    LOGPROBS_MAX,
    SEED_MAX,
    SEED_MIN,
    STOP_TOKEN_IDS_MAX,
    TOKEN_ID_MAX,
    Limits,
)

PENALTY_MAX = 2.0
BIAS_MAX = 100.0

# Carried by the contract under the same name.
_PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "min_tokens",
    "ignore_eos",
    "logprobs",
    "prompt_logprobs",
)


def take_sampling(read: dict[str, Any]) -> types.SamplingParams:
    """Take the fields of this room out of what was read; the seed is not drawn yet."""
    passed_on = {name: read.pop(name) for name in _PASSED_ON if name in read}
    hides_special = read.pop("skip_special_tokens", True)
    sampling = types.SamplingParams(**passed_on, show_special_tokens=not hides_special)
    if sampling.HasField("max_tokens") and sampling.min_tokens > sampling.max_tokens:
        wanted = f"at most max_tokens ({sampling.max_tokens})"
        raise values.out_of_range("min_tokens", wanted, sampling.min_tokens)
    return sampling


def check_sampling_ids(sampling: types.SamplingParams, vocab_size: int) -> None:
    """Every id must name a token of the model."""
    wanted = f"a token id from 0 to {vocab_size - 1}"
    for token_id in sampling.logit_bias:
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"'logit_bias.{token_id}' must be {wanted}",
                param=f"logit_bias.{token_id}",
                reason="out_of_range",
            )
    for i, token_id in enumerate(sampling.stop_token_ids):
        if token_id >= vocab_size:
            raise values.out_of_range(f"stop_token_ids[{i}]", wanted, token_id)


def count(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 0, COUNT_MAX)


def logprobs(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 0, LOGPROBS_MAX)


def _temperature(value: Any, param: str, _limits: Limits) -> float:
    return values.number(value, param, 0.0, 2.0)


def _top_p(value: Any, param: str, _limits: Limits) -> float:
    return values.positive(value, param, 1.0)


def _top_k(value: Any, param: str, _limits: Limits) -> int:
    # -1 is another word for all.
    return max(values.integer(value, param, -1, COUNT_MAX), 0)


def _min_p(value: Any, param: str, _limits: Limits) -> float:
    return values.number(value, param, 0.0, 1.0)


def _repetition_penalty(value: Any, param: str, _limits: Limits) -> float:
    return values.positive(value, param, 2.0)


def _penalty(value: Any, param: str, _limits: Limits) -> float:
    return values.number(value, param, -PENALTY_MAX, PENALTY_MAX)


def _seed(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, SEED_MIN, SEED_MAX)


def _logit_bias(value: Any, param: str, _limits: Limits) -> dict[int, float]:
    given = values.mapping(value, param)
    if len(given) > LOGIT_BIAS_MAX:
        raise values.out_of_range(param, f"an object of at most {LOGIT_BIAS_MAX} ids", len(given))
    return dict(_bias(key, bias, param) for key, bias in given.items())


def _bias(key: str, bias: Any, param: str) -> tuple[int, float]:
    at = f"{param}.{key[:32]}"
    is_id = key.isascii() and key.isdecimal() and len(key) <= 10 and str(int(key)) == key
    if not is_id or int(key) > TOKEN_ID_MAX:
        raise InvalidRequest(
            f"'{at}': the keys of '{param}' must be token ids like \"50256\"",
            param=at,
            reason="out_of_range",
        )
    return int(key), values.number(bias, at, -BIAS_MAX, BIAS_MAX)


def _stop(value: Any, param: str, limits: Limits) -> list[str]:
    if type(value) is str:
        return [values.name(value, param, limits.stop_characters)]
    if type(value) is not list:
        raise values.wrong_type(param, "a string or an array of strings", value)
    if len(value) > limits.stop_strings:
        wanted = f"at most {limits.stop_strings} stop strings"
        raise values.out_of_range(param, wanted, len(value))
    return [
        values.name(item, f"{param}[{i}]", limits.stop_characters) for i, item in enumerate(value)
    ]


def _stop_token_ids(value: Any, param: str, _limits: Limits) -> list[int]:
    if value == []:
        return []
    items = values.array(value, param, STOP_TOKEN_IDS_MAX)
    return [values.integer(item, f"{param}[{i}]", 0, TOKEN_ID_MAX) for i, item in enumerate(items)]


def _range(kind: str, minimum: float, maximum: float, default: float | None = None) -> Any:
    shape: dict[str, Any] = {"type": kind, "minimum": minimum, "maximum": maximum}
    return shape if default is None else {**shape, "default": default}


_ABSENT = "absent: what the model's generation_config.json says, else"

SAMPLING: tuple[Honoured, ...] = (
    Honoured(
        "max_tokens",
        count,
        {"type": "integer", "minimum": 0},
        "Most tokens of one choice; absent: as many as the context allows. 0, with `echo` or"
        " `prompt_logprobs`, only looks at the prompt.",
    ),
    Honoured(
        "temperature",
        _temperature,
        _range("number", 0, 2),
        f"0 takes the most likely token every time; {_ABSENT} 1.",
    ),
    Honoured(
        "top_p",
        _top_p,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        f"Draw from the smallest set of tokens whose probabilities reach this sum; {_ABSENT} 1.",
    ),
    Honoured(
        "top_k",
        _top_k,
        {"type": "integer", "minimum": -1},
        f"Draw from this many of the likeliest tokens; 0 or -1 are all; {_ABSENT} all.",
    ),
    Honoured(
        "min_p",
        _min_p,
        _range("number", 0, 1),
        f"Draw from tokens at least this share as likely as the likeliest one; {_ABSENT} 0.",
    ),
    Honoured(
        "repetition_penalty",
        _repetition_penalty,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
        f"Above 1: tokens of prompt and answer become less likely; {_ABSENT} 1.",
    ),
    Honoured(
        "presence_penalty",
        _penalty,
        _range("number", -2, 2, 0),
        "Taken off the logit of every token that the answer holds already.",
    ),
    Honoured(
        "frequency_penalty",
        _penalty,
        _range("number", -2, 2, 0),
        "Taken off a token's logit once for each time that the answer holds it.",
    ),
    Honoured(
        "logit_bias",
        _logit_bias,
        {
            "type": "object",
            "additionalProperties": _range("number", -100, 100),
            "maxProperties": LOGIT_BIAS_MAX,
        },
        "Token id (as a string) to what is added to its logit.",
    ),
    Honoured(
        "seed",
        _seed,
        {"type": "integer"},
        "Same seed, same request, same answer; without one a fresh seed is drawn.",
    ),
    Honoured(
        "stop",
        _stop,
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "A string or a few; the answer ends before the first that appears.",
    ),
    Honoured(
        "stop_token_ids",
        _stop_token_ids,
        {"type": "array", "items": {"type": "integer"}, "maxItems": STOP_TOKEN_IDS_MAX},
        "Extension: tokens that end the answer as the end-of-text token does.",
    ),
    Honoured(
        "min_tokens",
        count,
        {"type": "integer", "minimum": 0, "default": 0},
        "Extension: before these many tokens nothing but `max_tokens` ends the answer.",
    ),
    Honoured(
        "ignore_eos",
        fields.flag,
        {"type": "boolean", "default": False},
        "Extension: go on to max_tokens, also past the end-of-text token.",
    ),
    Honoured(
        "skip_special_tokens",
        fields.flag,
        {"type": "boolean", "default": True},
        "Extension: false shows special tokens as text.",
    ),
    Honoured(
        "prompt_logprobs",
        logprobs,
        _range("integer", 0, LOGPROBS_MAX),
        "Extension: log probabilities of the prompt's tokens, with this many alternatives."
        " Not with stream.",
    ),
)
