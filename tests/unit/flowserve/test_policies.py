"""Who goes first, and how much of a step prefills may take."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.engine_policies import POLICIES as CHOICES
from services.task_executor.flowserve.scheduler.policies import POLICIES
from services.task_executor.flowserve.scheduler.policies.base import PrefillDemand
from services.task_executor.flowserve.scheduler.policies.slo import (
    CHUNK_FIRST,
    CHUNK_MIN,
    STRETCH,
    STRETCH_MAX,
    Slo,
)
from services.task_executor.flowserve.scheduler.policies.step_cost import LOOK_TOKENS, StepCost
from tests.unit.flowserve.fingerprint_executor import answer_alone
from tests.unit.flowserve.harness import Harness, make_config

DECODE_SECONDS = 0.020
TOKEN_SECONDS = 0.0002


def seconds_of(decoding: int, prefilled: int) -> float:
    """A device whose steps cost exactly this."""
    return (DECODE_SECONDS if decoding else 0.0) + TOKEN_SECONDS * prefilled


def trained(policy: Slo, decoding: int = 8) -> Slo:
    for prefilled in (0, 64, 0, 512):
        policy.observe(decoding, prefilled, seconds_of(decoding, prefilled))
    return policy


def demand(
    decoding: int = 8, room: int = 2000, remaining: int = 4096, waited: float = 0.0
) -> PrefillDemand:
    return PrefillDemand(decoding, room, remaining, waited)


def test_nobody_decodes_so_a_prompt_takes_all_the_room() -> None:
    assert trained(Slo()).prefill_tokens(demand(decoding=0)) == 2000


def test_before_anything_is_known_chunks_are_small() -> None:
    policy = Slo()
    assert policy.prefill_tokens(demand()) == LOOK_TOKENS
    policy.observe(8, LOOK_TOKENS, seconds_of(8, LOOK_TOKENS))
    assert policy.prefill_tokens(demand()) == CHUNK_FIRST


def test_prompts_that_never_cease_do_not_pay_for_the_decoding_beside_them() -> None:
    """Many came to decode while prompts were read, so that nobody saw them decode alone."""
    policy, decode_seconds = Slo(), 0.032
    policy.observe(1, 0, 0.005)
    chunks: list[int] = []
    for _ in range(200):
        chunks.append(policy.prefill_tokens(demand(decoding=32)))
        policy.observe(32, chunks[-1], decode_seconds + TOKEN_SECONDS * chunks[-1])
    fair = (STRETCH - 1) * decode_seconds / TOKEN_SECONDS
    assert sorted(chunks[-66:])[33] == pytest.approx(fair, abs=2)
    assert chunks[-66:].count(LOOK_TOKENS) <= 2


@pytest.mark.parametrize("tpot", [0.0, 0.030, 0.100])
def test_a_step_takes_as_long_as_the_target_allows(tpot: float) -> None:
    tokens = trained(Slo(tpot)).prefill_tokens(demand())
    target = tpot or STRETCH * DECODE_SECONDS
    assert seconds_of(8, tokens) <= target < seconds_of(8, tokens + 2)


def test_an_impossible_target_still_lets_prompts_get_on() -> None:
    assert trained(Slo(0.001)).prefill_tokens(demand()) == CHUNK_MIN


def test_a_late_prompt_may_take_a_third_more() -> None:
    policy = trained(Slo(0.030, ttft_seconds=1.0))
    late = policy.prefill_tokens(demand(waited=5.0))
    assert 0.030 < seconds_of(8, late) <= STRETCH_MAX * 0.030


@given(
    decoding=st.integers(0, 64),
    room=st.integers(1, 4096),
    remaining=st.integers(1, 100_000),
    waited=st.floats(0, 1e4),
    tpot=st.sampled_from([0.0, 0.01, 0.05]),
    steps=st.lists(
        st.tuples(st.integers(0, 64), st.integers(0, 2048), st.floats(0, 2)), max_size=20
    ),
)
def test_a_chunk_is_never_nothing_and_never_more_than_the_room(
    decoding: int,
    room: int,
    remaining: int,
    waited: float,
    tpot: float,
    steps: list[tuple[int, int, float]],
) -> None:
    policy = Slo(tpot)
    for step in steps:
        policy.observe(*step)
    tokens = policy.prefill_tokens(PrefillDemand(decoding, room, remaining, waited))
    assert 1 <= tokens <= room


def test_costs_are_taken_from_the_nearest_size() -> None:
    cost = StepCost()
    assert cost.decode_seconds(4) is None and cost.prefill_within(1.0, 4) is None
    cost.observe(4, 0, 0.01)
    cost.observe(64, 0, 0.05)
    cost.observe(64, 100, 0.07)
    assert (cost.decode_seconds(5), cost.decode_seconds(100)) == (0.01, 0.05)
    assert cost.prefill_within(0.09, 64) == pytest.approx(200, abs=1)
    assert cost.prefill_within(0.01, 64) == 0


@pytest.mark.parametrize(
    ("policy", "first"), [("fcfs", "ordinary"), ("priority", "urgent"), ("slo", "urgent")]
)
def test_priorities_count_where_the_policy_says_so(policy: str, first: str) -> None:
    config = msgspec.structs.replace(make_config(max_sequences=1), policy=policy)
    harness = Harness(config)
    handles = {"ordinary": harness.submit([1]), "urgent": harness.submit([2], priority=-1)}
    harness.step()
    assert list(harness.started) == [handles[first]]
    harness.drain()


def test_answers_keep_flowing_while_a_long_prompt_is_read() -> None:
    """Without the policy one step takes the whole prompt."""
    config = make_config(max_tokens=4000, kv_blocks=1100, max_step_tokens=3000)
    config = msgspec.structs.replace(config, policy="slo")
    harness = Harness(config)
    talker = harness.submit([1], max_tokens=300)
    for _ in range(5):
        harness.step()
    reader = harness.submit([2] * 1000, max_tokens=2)
    while not harness.answers[reader]:
        before = len(harness.answers[talker])
        plan = harness.step()
        assert plan is not None and plan.num_tokens <= 1 + CHUNK_FIRST
        assert len(harness.answers[talker]) == before + 1
    harness.drain()
    assert harness.answers[talker] == answer_alone([1], 300, ignore_eos=True)


def test_the_choices_that_people_have_are_those_of_the_engine() -> None:
    assert set(CHOICES) == set(POLICIES)
