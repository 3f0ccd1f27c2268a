"""The fields of /v1/completions."""

from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, sampling, shared, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.grammar import RESPONSE_FORMAT
from services.gateway.schema.limits import COUNT_MAX, LOGPROBS_MAX, TOKEN_ID_MAX, Limits

_WANTED = "a string, an array of strings, an array of token ids or an array of such arrays"


def _prompt(value: Any, param: str, limits: Limits) -> jobs.CompletionInput:
    return jobs.CompletionInput(prompts=read_prompts(value, param, limits.prompts))


def read_prompts(value: Any, param: str, items_max: int) -> list[jobs.Prompt]:
    if type(value) is str:
        return [_text_prompt(value, param)]
    if type(value) is not list:
        raise values.wrong_type(param, _WANTED, value)
    if not value:
        raise _empty(param)
    if type(value[0]) is int:
        return [_token_prompt(value, param)]
    items = values.array(value, param, items_max)
    read = _text_prompt if type(value[0]) is str else _token_prompt
    return [read(item, f"{param}[{i}]") for i, item in enumerate(items)]


def _text_prompt(value: Any, param: str) -> jobs.Prompt:
    text = values.string(value, param)
    if not text:
        raise _empty(param)
    return jobs.Prompt(text=text)


def _token_prompt(value: Any, param: str) -> jobs.Prompt:
    if type(value) is not list:
        raise values.wrong_type(param, _WANTED, value)
    if not value:
        raise _empty(param)
    return jobs.Prompt(tokens=jobs.TokenIds(ids=token_ids(value, param)))


def token_ids(value: list[Any], param: str) -> list[int]:
    # Long prompts are common here: look at the items one by one only to name the wrong one.
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > TOKEN_ID_MAX:
        for i, item in enumerate(value):
            values.integer(item, f"{param}[{i}]", 0, TOKEN_ID_MAX)
    return value


def _best_of(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 1, COUNT_MAX)


def _empty(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is empty; a prompt needs at least one token", param=param, reason="empty"
    )


INPUT_SHAPE: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    ]
}

COMPLETION = Fields(
    honoured=(
        Honoured(
            "prompt",
            _prompt,
            INPUT_SHAPE,
            "Text or token ids, one prompt or several; choice index = prompt index * n + k.",
        ),
        *shared.HONOURED,
        Honoured(
            "logprobs",
            sampling.logprobs,
            {"type": "integer", "minimum": 0, "maximum": LOGPROBS_MAX},
            "Log probabilities of the answer's tokens, with this many alternatives.",
        ),
        Honoured(
            "echo",
            fields.flag,
            {"type": "boolean", "default": False},
            "The answer begins with the prompt; with logprobs also its tokens.",
        ),
        Honoured(
            "best_of",
            _best_of,
            {"type": "integer", "minimum": 1},
            "Only 1 or n: every choice is returned.",
        ),
        RESPONSE_FORMAT,
    ),
    inert=(*shared.INERT, Inert("suffix", ("",), "Nothing comes after the answer.")),
    refused=(*shared.REFUSED, "prompt_embeds"),
    instead=shared.INSTEAD,
)


def settle(read: dict[str, Any]) -> None:
    """What no single field can see."""
    fields.require(read, "", prompt=_WANTED)
    best_of, n = read.pop("best_of", 1), read.get("n", 1)
    if best_of not in (1, n):
        raise fields.unsupported("best_of", f"'best_of' must be 1 or n ({n}), not {best_of}")


def check_token_ids(prompts: jobs.CompletionInput, vocab_size: int) -> None:
    """Every id must name a token of the model."""
    for p, prompt in enumerate(prompts.prompts):
        ids = prompt.tokens.ids
        if ids and max(ids) >= vocab_size:
            i = next(i for i, token_id in enumerate(ids) if token_id >= vocab_size)
            where = f"prompt[{p}][{i}]" if len(prompts.prompts) > 1 else f"prompt[{i}]"
            raise values.unknown_token(where, vocab_size, ids[i])
