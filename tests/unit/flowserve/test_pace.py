"""What a rank shows of itself, and how long it says that its work will take."""

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.process_state import Usage, usage_of
from services.task_executor.flowserve.marks import Doing, Marks
from services.task_executor.flowserve.plan import StepPlan
from services.task_executor.flowserve.ranks.pace import Pace, Weight, weight_of
from services.task_executor.flowserve.ring import Ring

weights = st.tuples(st.integers(0, 5), st.integers(0, 5))
observed = st.lists(st.tuples(weights, st.integers(1, 1000)), max_size=30)


def test_the_other_side_of_a_ring_sees_the_marks() -> None:
    ring = Ring.create()
    other = Ring.open([os.dup(fd) for fd in ring.fds])
    assert other.marks.read().doing is Doing.LOADING
    seen = [other.marks.read()]
    for mark, doing in (
        (ring.marks.rest, Doing.RESTING),
        (lambda: ring.marks.work(5_000_000), Doing.WORKING),
        (ring.marks.meet, Doing.MEETING),
        (ring.marks.go_on, Doing.WORKING),
        (ring.marks.load, Doing.LOADING),
    ):
        mark()
        seen.append(other.marks.read())
        assert seen[-1].doing is doing
    assert len(set(seen)) == len(seen)
    assert seen[3].expected_seconds == seen[4].expected_seconds == 0.005
    assert [it.since_ns for it in seen] == sorted(it.since_ns for it in seen)
    assert ring.step_clock.read() is None  # which lies beside them
    ring.close()
    other.close()


def test_only_work_between_meetings_counts() -> None:
    marks = Marks.private()
    for mark in (marks.rest, marks.meet, marks.load):
        mark()
        assert marks.take_longest() == 0
    marks.work(0)
    marks.meet()
    assert marks.take_longest() > 0
    assert marks.take_longest() == 0


def test_a_plan_weighs_its_tokens_and_what_they_look_back_at() -> None:
    plan = StepPlan(1, rows=[0, 1], starts=[0, 1000], counts=[500, 1], samples=[False, True])
    assert weight_of(plan) == (9, 10)
    assert weight_of(StepPlan(1)) == (0, 0)


@given(observed, weights, st.integers(1, 3))
def test_what_is_expected_was_seen_of_a_plan_at_least_as_heavy(
    seen: list[tuple[Weight, int]], asked: Weight, sure_after: int
) -> None:
    pace = Pace(Marks.private(), sure_after)
    for weight, longest in seen:
        pace.observe(weight, longest)
    times = [weight for weight, _ in seen]
    heavier = {
        weight
        for weight in times
        if weight[0] >= asked[0] and weight[1] >= asked[1] and times.count(weight) >= sure_after
    }
    expected = pace.expected_ns(asked)
    assert (expected > 0) == bool(heavier)
    assert not expected or expected <= max(longest for it, longest in seen if it in heavier)


def test_a_slow_step_is_believed_at_once_and_forgotten_slowly() -> None:
    pace = Pace(Marks.private(), sure_after=1)
    pace.observe((1, 1), 1_000)
    pace.observe((1, 1), 80_000)
    assert pace.expected_ns((1, 1)) == 80_000
    pace.observe((1, 1), 1_000)
    assert 60_000 < pace.expected_ns((1, 1)) < 80_000
    for _ in range(100):
        pace.observe((1, 1), 1_000)
    assert pace.expected_ns((1, 1)) < 2_000


def test_accelerators_must_have_seen_it_several_times() -> None:
    cpu, other = (Pace.on(kind, Marks.private()) for kind in ("cpu", "npu"))
    for pace in (cpu, other):
        pace.observe((1, 1), 1_000)
    assert (cpu.expected_ns((1, 1)), other.expected_ns((1, 1))) == (1_000, 0)


def test_the_kernel_says_what_a_process_has_used() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert usage_of(os.getpid()).cpu_ns > usage_of(process.pid).cpu_ns
        finally:
            process.kill()
    assert usage_of(process.pid) == Usage()


@pytest.mark.parametrize("sure_after", [1, 4])
def test_a_pace_marks_the_plans_that_it_has_seen_as_known(sure_after: int) -> None:
    marks = Marks.private()
    pace = Pace(marks, sure_after)
    plan = StepPlan(1, rows=[0], starts=[3], counts=[1], samples=[True])
    for _ in range(sure_after):
        pace.begin(plan)
        assert marks.read().doing is Doing.WORKING
        assert not marks.read().expected_seconds
        marks.meet()
        marks.go_on()
        pace.end()
    pace.begin(plan)
    assert marks.read().expected_seconds > 0
