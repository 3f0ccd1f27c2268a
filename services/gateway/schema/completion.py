"""The fields of /v1/completions."""

from typing import Any

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, values
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import TOKEN_ID_MAX, Limits

_WANTED = "a string, an array of strings, an array of token ids or an array of such arrays"


def _prompt(value: Any, param: str, limits: Limits) -> jobs.CompletionInput:
    if type(value) is str:
        return jobs.CompletionInput(prompts=[_text_prompt(value, param)])
    if type(value) is not list:
        raise values.wrong_type(param, _WANTED, value)
    if not value:
        raise _empty(param)
    if type(value[0]) is int:
        return jobs.CompletionInput(prompts=[_token_prompt(value, param)])
    items = values.array(value, param, limits.prompts)
    read = _text_prompt if type(value[0]) is str else _token_prompt
    return jobs.CompletionInput(prompts=[read(p, f"{param}[{i}]") for i, p in enumerate(items)])


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
    # Long prompts are common here: look at the items one by one only to name the wrong one.
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) > TOKEN_ID_MAX:
        for i, item in enumerate(value):
            values.integer(item, f"{param}[{i}]", 0, TOKEN_ID_MAX)
    return jobs.Prompt(tokens=jobs.TokenIds(ids=value))


def _empty(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is empty; a prompt needs at least one token", param=param, reason="empty"
    )


COMPLETION = Fields(
    honoured=(
        Honoured(
            "prompt",
            _prompt,
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    },
                ]
            },
            "Text or token ids, one prompt or several; choice index = prompt index * n + k.",
        ),
        *fields.SHARED_HONOURED,
    ),
    inert=(
        *fields.SHARED_INERT,
        Inert("best_of", (1,), "Every choice is returned."),
        Inert("echo", (False,), "The prompt is not repeated."),
        Inert("suffix", ("",), "Nothing comes after the answer."),
        Inert("metadata", (), "Kept nowhere."),
        Inert("store", (False,), "Nothing is stored."),
    ),
    refused=("logprobs",),
)


def check(read: dict[str, Any]) -> None:
    """What no single field can see."""
    if "prompt" not in read:
        raise values.missing("prompt", _WANTED)


def check_token_ids(prompts: jobs.CompletionInput, vocab_size: int) -> None:
    """Every id must name a token of the model."""
    for p, prompt in enumerate(prompts.prompts):
        ids = prompt.tokens.ids
        if ids and max(ids) >= vocab_size:
            i = next(i for i, token_id in enumerate(ids) if token_id >= vocab_size)
            where = f"prompt[{p}][{i}]" if len(prompts.prompts) > 1 else f"prompt[{i}]"
            raise values.out_of_range(where, f"a token id from 0 to {vocab_size - 1}", ids[i])
