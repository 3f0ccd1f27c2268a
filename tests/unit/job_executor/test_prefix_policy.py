"""Where a task causes the least work: the policy's promises, and how it does in simulation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.scheduling.least_load import LeastLoad
from services.job_executor.scheduling.policy import GroupView, RequestFeatures, TaskExecutorLoad
from services.job_executor.scheduling.prefix import TASK_TOKENS, Prefix
from services.job_executor.scheduling.registry import DEFAULT_POLICY, make_policy
from tests.unit.job_executor.routing_simulation import (
    WORKLOADS,
    LongestPrefixOnly,
    RoundRobin,
    simulate,
)

# Of the mean time to the first token, once the caches are warm.
NOISE_SECONDS = 0.005
FEATURES = RequestFeatures("demo", prompt_tokens=4096, max_tokens=20)
EXECUTORS = st.lists(
    st.builds(
        TaskExecutorLoad,
        id=st.text(alphabet="abcdef", min_size=1, max_size=3),
        outstanding=st.integers(0, 50),
        reported=st.integers(0, 50),
        outstanding_at_report=st.integers(0, 50),
        cached_tokens=st.integers(0, 8192),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda executor: executor.id,
)


def test_it_is_the_default() -> None:
    assert isinstance(make_policy(DEFAULT_POLICY), Prefix)


@given(EXECUTORS)
def test_nobody_dominates_the_chosen_one(executors: list[TaskExecutorLoad]) -> None:
    """No other has both more of the prompt and less to do."""
    placement = Prefix().choose(FEATURES, GroupView(tuple(executors)))
    least = min(placement.scores.values())
    assert placement.scores.keys() == {executor.id for executor in executors}
    assert placement.scores[placement.task_executor_id] == least >= 0
    assert "prompt tokens are cached there" in placement.explanation


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_where_nobody_holds_anything_load_decides(loads: list[int]) -> None:
    group = GroupView(tuple(TaskExecutorLoad(f"te-{i}", load) for i, load in enumerate(loads)))
    assert Prefix().choose(FEATURES, group).task_executor_id == (
        LeastLoad().choose(FEATURES, group).task_executor_id
    )


@given(st.integers(0, 30))
def test_a_held_prompt_is_worth_a_bounded_queue(queue: int) -> None:
    holder = TaskExecutorLoad("holder", queue, cached_tokens=4080)
    group = GroupView((holder, TaskExecutorLoad("idle", 0)))
    chosen = Prefix().choose(FEATURES, group).task_executor_id
    assert chosen == ("holder" if queue * TASK_TOKENS < 4080 else "idle")


def test_equals_take_turns() -> None:
    policy = Prefix()
    group = GroupView(tuple(TaskExecutorLoad(name, 0, cached_tokens=512) for name in "abc"))
    chosen = [policy.choose(FEATURES, group).task_executor_id for _ in range(6)]
    assert chosen == list("abcabc")


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("capacity", [1000, 4000])
def test_it_never_loses_to_load_alone(workload: str, capacity: int) -> None:
    for seed in (1, 2):
        requests = WORKLOADS[workload](seed)
        load = simulate(LeastLoad(), requests, capacity=capacity)
        prefix = simulate(Prefix(), requests, capacity=capacity)
        assert prefix.hit_rate >= load.hit_rate - 0.001
        assert prefix.mean_wait <= load.mean_wait + NOISE_SECONDS
        assert prefix.imbalance < 1.1


def test_conversations_stay_where_their_cache_is() -> None:
    requests = WORKLOADS["conversations"](1)
    outcomes = [simulate(it, requests) for it in (Prefix(), LeastLoad(), RoundRobin())]
    prefix, load, turns = (outcome.hit_rate for outcome in outcomes)
    assert prefix > 1.5 * max(load, turns)


def test_locality_alone_gives_everything_to_one() -> None:
    requests = WORKLOADS["one prompt for all"](1)
    alone, prefix = simulate(LongestPrefixOnly(), requests), simulate(Prefix(), requests)
    assert alone.imbalance == 4.0 and prefix.imbalance < 1.1
    assert prefix.mean_wait < alone.mean_wait / 10
