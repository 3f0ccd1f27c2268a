"""Sampling parameters: completed from what is said, refused by name where that is wrong."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.sampling import (
    LOGIT_BIAS_MAX,
    PROMPT_LOGPROBS_MAX,
    USUAL,
    check,
    check_prompt_logprobs,
    check_scores,
    complete,
    ending_ids,
    max_tokens_of,
)

VOCAB_SIZE = 100
# Halves are exact in the 32 bits that travel.
VALUES = {name: st.integers(0, 4).map(lambda n: n / 2) for name in USUAL} | {
    "top_k": st.integers(0, 50)
}
SOME = st.fixed_dictionaries({}, optional=VALUES)
COUNTS = st.none() | st.integers(0, 50)


@given(SOME, SOME)
def test_what_is_given_wins_then_what_the_author_says_then_the_usual(
    given_values: dict[str, Any], said: dict[str, Any]
) -> None:
    sampling = types.SamplingParams(seed=7, stop=["x"], **given_values)
    completed = complete(sampling, cluster_pb2.GenerationDefaults(**said))
    expected = {**USUAL, **said, **given_values}
    assert {name: getattr(completed, name) for name in USUAL} == expected
    assert all(completed.HasField(name) for name in USUAL)  # type: ignore[arg-type]
    assert (completed.seed, list(completed.stop)) == (7, ["x"])
    assert not completed.HasField("max_tokens")


@given(COUNTS, COUNTS, st.integers(1, 50))
def test_an_answer_is_as_long_as_was_asked_and_never_longer_than_the_room(
    wanted: int | None, said: int | None, room: int
) -> None:
    defaults = cluster_pb2.GenerationDefaults(max_tokens=said)
    longest = max_tokens_of(types.SamplingParams(max_tokens=wanted), defaults, room)
    asked = [count for count in (wanted, said) if count is not None]
    assert longest == min([room, *asked[:1]])


@pytest.mark.parametrize(("given_max", "room", "word"), [(5, 50, "max_tokens"), (50, 5, "context")])
def test_more_tokens_than_may_come_cannot_be_the_least(
    given_max: int, room: int, word: str
) -> None:
    defaults = cluster_pb2.GenerationDefaults()
    sampling = types.SamplingParams(max_tokens=given_max, min_tokens=6)
    with pytest.raises(InvalidRequest, match=f"at most 5, .*{word}") as caught:
        max_tokens_of(sampling, defaults, room)
    assert caught.value.param == "min_tokens"
    sampling.min_tokens = 5
    assert max_tokens_of(sampling, defaults, room) == 5


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logit_bias": {3: 0.0, 100: 1.0}}, "logit_bias.100"),
        ({"logit_bias": {3: math.nan}}, "logit_bias.3"),
        ({"logit_bias": dict.fromkeys(range(LOGIT_BIAS_MAX + 1), 1.0)}, "logit_bias"),
        ({"stop_token_ids": [3, 4, 100]}, "stop_token_ids[2]"),
        ({"stop_token_ids": [3] * 129}, "stop_token_ids"),
    ],
)
def test_what_no_model_can_draw_by_is_refused_by_name(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(types.SamplingParams(**sampling), VOCAB_SIZE)
    assert (caught.value.param, caught.value.reason) == (param, "out_of_range")


def test_what_is_at_its_bound_is_fine() -> None:
    check(types.SamplingParams(), VOCAB_SIZE)
    check(
        types.SamplingParams(
            temperature=0,
            top_p=1,
            logprobs=20,
            prompt_logprobs=0,
            logit_bias={99: -100.0},
            stop_token_ids=[0, 99],
        ),
        VOCAB_SIZE,
    )


@given(st.integers(1, 2 * PROMPT_LOGPROBS_MAX), st.integers(0, 20))
def test_the_refusal_of_too_many_prompt_logprobs_names_what_fits(tokens: int, wanted: int) -> None:
    sampling = types.SamplingParams(prompt_logprobs=wanted)
    fits = tokens * (1 + wanted) <= PROMPT_LOGPROBS_MAX
    try:
        check_prompt_logprobs(sampling, tokens)
    except InvalidRequest as error:
        assert error.param == "prompt_logprobs" and not fits
        fitting = PROMPT_LOGPROBS_MAX // tokens - 1
        assert (f"at most {fitting} " if fitting >= 0 else "absent") in error.message
    else:
        assert fits


def test_the_end_of_text_ends_an_answer_unless_it_is_ignored() -> None:
    facts = cluster_pb2.ModelFacts(eos_token_ids=[1, 2])
    assert ending_ids(types.SamplingParams(stop_token_ids=[5]), facts) == {1, 2, 5}
    assert ending_ids(types.SamplingParams(stop_token_ids=[5], ignore_eos=True), facts) == {5}


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_a_device_without_logits_refuses_their_fields_by_name(name: str) -> None:
    sampling = types.SamplingParams(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="emulated:zero computes no") as refused:
        check_scores(sampling, "emulated:zero")
    assert (refused.value.param, refused.value.reason) == (name, "unsupported_field")
    check_scores(sampling, "cpu")
    check_scores(types.SamplingParams(), "emulated:zero")
