"""Every parameter that the engine refuses, and the extremes that it takes."""

from typing import Any

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import Submit
from services.task_executor.flowserve.scheduler.validation import (
    ALTERNATIVES_MAX,
    BIASES_MAX,
    STOP_TOKENS_MAX,
    find_fault,
)
from tests.unit.flowserve.fingerprint_executor import EOS
from tests.unit.flowserve.harness import make_config

NAN, INFINITY = float("nan"), float("inf")


def fault_of(*, has_logits: bool = True, **changes: Any) -> str:
    config = make_config(vocab_size=3000, has_logits=has_logits)
    sampling = SamplingParams(**{"max_tokens": 8, **changes})
    return find_fault(Submit(1, [1, 2], sampling), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": -1}, "max_tokens is -1, but must be 0 or more"),
        ({"temperature": NAN}, "temperature is nan, but must be from 0 to 100"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": INFINITY}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0, but must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": NAN}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0, but must be from 0.01 to 100"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1"),
        ({"repetition_penalty": INFINITY}, "repetition_penalty is inf"),
        ({"presence_penalty": 101.0}, "presence_penalty is 101"),
        ({"frequency_penalty": NAN}, "frequency_penalty is nan"),
        ({"logit_bias": {3000: 1.0}}, "logit_bias holds 3000, which is not in the vocabulary"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias holds -1"),
        ({"logit_bias": {5: INFINITY}}, "logit_bias of token 5 is inf"),
        ({"logit_bias": {5: NAN}}, "logit_bias of token 5 is nan"),
        ({"logit_bias": dict.fromkeys(range(BIASES_MAX + 1), 1.0)}, "logit_bias names 1025"),
        ({"stop_token_ids": (7, 3000)}, "stop_token_ids holds 3000"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids holds -1"),
        ({"stop_token_ids": tuple(range(STOP_TOKENS_MAX + 1))}, "stop_token_ids names 1025"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9}, "min_tokens is 9, but must be from 0 to max_tokens"),
        ({"repetition_penalty": 1e-50}, "repetition_penalty is 1e-50"),
        ({"logprobs": -1}, "logprobs is -1, but must be from 0 to 20"),
        ({"logprobs": ALTERNATIVES_MAX + 1}, "logprobs is 21"),
        ({"prompt_logprobs": ALTERNATIVES_MAX + 1}, "prompt_logprobs is 21"),
    ],
)
def test_what_cannot_be_drawn_is_named(changes: dict[str, Any], message: str) -> None:
    assert message in fault_of(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"temperature": 0.0, "top_p": 1e-9},
        {"temperature": 100.0, "top_k": 10**9},
        {"min_p": 1.0, "repetition_penalty": 100.0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"logit_bias": dict.fromkeys(range(BIASES_MAX), -100.0)},
        {"stop_token_ids": (0, 2999), "min_tokens": 8},
        {"logprobs": 0, "prompt_logprobs": ALTERNATIVES_MAX},
    ],
)
def test_the_extremes_are_taken(changes: dict[str, Any]) -> None:
    assert fault_of(**changes) == ""


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_a_device_without_logits_invents_no_logprobs(field: str) -> None:
    fault = fault_of(has_logits=False, **{field: 0})
    assert fault == f"{field} is asked for, but an emulated device computes no log probabilities"
    assert fault_of(has_logits=False, top_k=3, min_p=0.1, repetition_penalty=2.0) == ""


@pytest.mark.parametrize(("ignore_eos", "is_fine"), [(False, False), (True, True)])
def test_min_tokens_must_leave_a_token_to_draw(ignore_eos: bool, is_fine: bool) -> None:
    """In a vocabulary of 50 all but EOS end the answer."""
    others = tuple(token for token in range(50) if token != EOS)
    for min_tokens, expected in ((0, True), (1, is_fine)):
        sampling = SamplingParams(
            8, stop_token_ids=others, min_tokens=min_tokens, ignore_eos=ignore_eos
        )
        fault = find_fault(Submit(1, [1, 2], sampling), make_config())
        assert (fault == "") is expected
        assert expected or "the whole vocabulary" in fault
