"""From the sampling parameters of a job to those of its tasks: checked, and nothing left open."""

import math

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

LOGPROBS_MAX = 20
LOGIT_BIAS_MAX = 300
STOP_TOKEN_IDS_MAX = 128
EMULATED = "emulated:"
# Entries of all prompts of a job together: its tokens, each with its alternatives.
PROMPT_LOGPROBS_MAX = 2 * 1024 * 1024
# What holds where neither the client nor the model's author says anything.
USUAL: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logprobs": (0, LOGPROBS_MAX),
    "prompt_logprobs": (0, LOGPROBS_MAX),
}
_ABOVE_ZERO = ("top_p", "repetition_penalty")
_BIAS = (-100.0, 100.0)


def complete(
    given: types.SamplingParams, defaults: cluster_pb2.GenerationDefaults
) -> types.SamplingParams:
    """What the client gave, else what the model's author says, else what is usual.

    `max_tokens` depends on the prompt as well: see `max_tokens_of`.
    """
    completed = types.SamplingParams()
    completed.CopyFrom(given)
    for name, usual in USUAL.items():
        if not given.HasField(name):  # type: ignore[arg-type]  # one of USUAL's names
            is_said = defaults.HasField(name)  # type: ignore[arg-type]
            setattr(completed, name, getattr(defaults, name) if is_said else usual)
    return completed


def max_tokens_of(
    given: types.SamplingParams, defaults: cluster_pb2.GenerationDefaults, room: int
) -> int:
    """How long the answer may get where `room` tokens fit. Raises InvalidRequest."""
    wanted = room
    if given.HasField("max_tokens"):
        wanted = given.max_tokens
    elif defaults.HasField("max_tokens"):
        wanted = defaults.max_tokens
    longest = min(wanted, room)
    if given.min_tokens > longest:
        why = "what the context leaves" if longest == room else "max_tokens"
        raise _refused("min_tokens", f"at most {longest}, {why}", given.min_tokens)
    return longest


def ending_ids(sampling: types.SamplingParams, facts: cluster_pb2.ModelFacts) -> frozenset[int]:
    """Tokens that end the answer, and so are no part of its text."""
    ends = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        ends.update(facts.eos_token_ids)
    return frozenset(ends)


def check(sampling: types.SamplingParams, vocab_size: int) -> None:
    """Raises InvalidRequest for what no model can draw by; absent fields are fine."""
    for field, value in sampling.ListFields():
        if field.name in _RANGES:
            _check_range(field.name, value, *_RANGES[field.name])
    _check_count("logit_bias", len(sampling.logit_bias), LOGIT_BIAS_MAX)
    _check_count("stop_token_ids", len(sampling.stop_token_ids), STOP_TOKEN_IDS_MAX)
    for token_id, bias in sampling.logit_bias.items():
        _check_id(f"logit_bias.{token_id}", token_id, vocab_size)
        _check_range(f"logit_bias.{token_id}", bias, *_BIAS)
    for index, token_id in enumerate(sampling.stop_token_ids):
        _check_id(f"stop_token_ids[{index}]", token_id, vocab_size)


def check_scores(sampling: types.SamplingParams, device: str) -> None:
    """Raises InvalidRequest where log probabilities are asked of a device that has none."""
    if not device.startswith(EMULATED):
        return
    for name in ("logprobs", "prompt_logprobs"):
        if sampling.HasField(name):
            raise InvalidRequest(
                f"'{name}' is asked for, but {device} computes no log probabilities",
                param=name,
                reason="unsupported_field",
            )


def check_prompt_logprobs(sampling: types.SamplingParams, prompt_tokens: int) -> None:
    """Raises InvalidRequest where the prompts of all choices make too much to send."""
    entries = prompt_tokens * (1 + sampling.prompt_logprobs)
    if sampling.HasField("prompt_logprobs") and entries > PROMPT_LOGPROBS_MAX:
        fitting = PROMPT_LOGPROBS_MAX // prompt_tokens - 1
        wanted = f"at most {fitting}" if fitting >= 0 else "absent"
        raise _refused(
            "prompt_logprobs",
            f"{wanted} where the prompts of all choices have {prompt_tokens} tokens together",
            sampling.prompt_logprobs,
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    is_open = name in _ABOVE_ZERO
    if math.isfinite(value) and low <= value <= high and not (is_open and value == 0):
        return
    wanted = f"above 0 and at most {high:g}" if is_open else f"from {low:g} to {high:g}"
    raise _refused(name, wanted, value)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(
            f"'{name}' may hold at most {most} token ids, not {count}",
            param=name,
            reason="out_of_range",
        )


def _check_id(name: str, token_id: int, vocab_size: int) -> None:
    if token_id >= vocab_size:
        raise _refused(name, f"a token id from 0 to {vocab_size - 1}", token_id)


def _refused(name: str, wanted: str, value: float) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' must be {wanted}, not {value:g}", param=name, reason="out_of_range"
    )
