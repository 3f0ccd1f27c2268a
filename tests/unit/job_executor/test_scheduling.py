"""Policies as pure functions of what they are shown."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow import config
from services.job_executor.config import JobExecutorConfig
from services.job_executor.scheduling.least_load import LeastLoad
from services.job_executor.scheduling.policy import GroupView, RequestFeatures, TaskExecutorLoad
from services.job_executor.scheduling.registry import make_policy

FEATURES = RequestFeatures("demo", prompt_tokens=10, max_tokens=20)
EXECUTORS = st.lists(
    st.builds(
        TaskExecutorLoad,
        id=st.text(alphabet="abcdef", min_size=1, max_size=3),
        outstanding=st.integers(0, 50),
        reported=st.integers(0, 50),
        outstanding_at_report=st.integers(0, 50),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda executor: executor.id,
)


@given(EXECUTORS)
def test_the_chosen_one_is_there_and_nobody_has_less(executors: list[TaskExecutorLoad]) -> None:
    placement = LeastLoad().choose(FEATURES, GroupView(tuple(executors)))
    assert placement.task_executor_id in {executor.id for executor in executors}
    assert placement.scores[placement.task_executor_id] == min(placement.scores.values())


@given(st.integers(1, 6), st.integers(0, 60))
def test_tasks_are_spread_evenly(num_executors: int, num_tasks: int) -> None:
    policy, counts = LeastLoad(), Counter({f"te-{i}": 0 for i in range(num_executors)})
    for _ in range(num_tasks):
        loads = tuple(TaskExecutorLoad(name, count) for name, count in counts.items())
        counts[policy.choose(FEATURES, GroupView(loads)).task_executor_id] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


def test_equals_take_turns() -> None:
    policy = LeastLoad()
    group = GroupView(tuple(TaskExecutorLoad(name, outstanding=0) for name in "abc"))
    chosen = [policy.choose(FEATURES, group).task_executor_id for _ in range(6)]
    assert chosen == list("abcabc")


def test_own_tasks_in_a_heartbeat_do_not_weigh_twice() -> None:
    mine = TaskExecutorLoad("mine", outstanding=4, reported=4, outstanding_at_report=4)
    others = TaskExecutorLoad("others", outstanding=0, reported=5, outstanding_at_report=0)
    assert LeastLoad().choose(FEATURES, GroupView((mine, others))).task_executor_id == "mine"


def test_an_unknown_policy_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="choose one of least_load"):
        make_policy("fortune")


def test_an_unknown_policy_stops_start_up_naming_key_and_value() -> None:
    environ = {"DEEPFLOW_JOB_EXECUTOR_POLICY": "fortune"}
    with pytest.raises(config.ConfigError, match=r"POLICY = 'fortune'.*least_load"):
        config.load(JobExecutorConfig, "job_executor", environ=environ)
