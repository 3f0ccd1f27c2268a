"""A pipeline: several steps are under way, and no token is planned before the last one is known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.flowserve.config import EngineConfigError
from services.task_executor.flowserve.plan import StepPlan, StepResult
from tests.unit.flowserve.fingerprint_executor import answer_alone
from tests.unit.flowserve.harness import Harness, make_config


class PipelineHarness(Harness):
    def __init__(self, stages: int, **changes: int) -> None:
        config = make_config(pipeline_parallel=stages, steps_in_flight=stages, **changes)
        super().__init__(config, depth=stages)
        self.widths: list[int] = []

    def _launch(self, plan: StepPlan) -> None:
        drawing = {
            row
            for result in self.under_way
            if isinstance(result, StepResult)
            for row in (*result.rows, *result.failures)
        }
        admitted = {sequence.row for sequence in plan.admitted}
        assert not drawing & (set(plan.rows) - admitted), "its last token is not known yet"
        self.widths.append(len(plan.rows))
        super()._launch(plan)


@settings(max_examples=60, deadline=None)
@given(
    stages=st.integers(2, 4),
    prompts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=20), min_size=1, max_size=8),
    kv_blocks=st.integers(11, 24),
)
def test_answers_are_those_given_alone(
    stages: int, prompts: list[list[int]], kv_blocks: int
) -> None:
    harness = PipelineHarness(stages, kv_blocks=kv_blocks)
    handles = [harness.submit(prompt, 10, ignore_eos=True) for prompt in prompts]
    harness.drain()
    for handle, prompt in zip(handles, prompts, strict=True):
        assert harness.answers[handle] == answer_alone(prompt, 10, ignore_eos=True)


def test_decoding_sequences_are_dealt_to_the_stages() -> None:
    harness = PipelineHarness(2, kv_blocks=40)
    for token in range(4):
        harness.submit([token], 12)
    harness.drain()
    # Once all have begun, each step runs half of them, so that no stage waits for the other.
    assert harness.widths[4:16] == [2] * 12


def test_chunks_of_one_prompt_ride_in_steps_that_follow_each_other() -> None:
    harness = PipelineHarness(3, kv_blocks=40)
    handle = harness.submit([1, 2, 3] * 10, 4)
    plans = [harness.scheduler.plan() for _ in range(3)]
    assert [plan and (plan.starts, plan.counts) for plan in plans] == [
        ([0], [12]),
        ([12], [12]),
        ([24], [6]),
    ]
    assert harness.scheduler.plan() is None  # the token that follows is not drawn yet
    for plan in plans:
        assert plan is not None
        harness.scheduler.apply(harness.executor.execute(plan))
        harness.collect()
    harness.drain()
    assert harness.answers[handle] == answer_alone([1, 2, 3] * 10, 4, ignore_eos=True)


def test_there_are_as_many_steps_as_stages_at_most() -> None:
    with pytest.raises(EngineConfigError, match="steps_in_flight is 4, but must be from 1 to 3"):
        make_config(pipeline_parallel=3, steps_in_flight=4)
