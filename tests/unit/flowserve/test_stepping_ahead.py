"""The next step is planned and handed over while one runs, and no answer is another for it."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig, EngineConfigError
from services.task_executor.flowserve.engine import FlowServe
from services.task_executor.flowserve.failed_steps import MAX_FAILED_STEPS
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Cancel, StepOutput, Submit
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.ring import Ring, wait_readable
from tests.unit.flowserve.fingerprint_executor import (
    EOS,
    POISON,
    DeviceFault,
    FingerprintExecutor,
    answer_alone,
)
from tests.unit.flowserve.harness import make_config

SAMPLING = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
DEADLINE_SECONDS = 60


def ahead_config(**changes: int) -> EngineConfig:
    return make_config(steps_in_flight=2, **changes)


class GatedExecutor(FingerprintExecutor):
    """Runs a step only when the test lets it."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config.kv_blocks, config.block_size)
        self.gate = threading.Semaphore(0)

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.gate.acquire(timeout=DEADLINE_SECONDS)
        return super().execute(plan)


class Stand:
    def __init__(self, **changes: int) -> None:
        self.executor = GatedExecutor(ahead_config(**changes))
        self.ring = Ring.create(64)
        clock = self.ring.step_clock
        self.master = Master(ahead_config(**changes), self.executor, step_clock=clock)

    def submit(self, handle: int, prompt: list[int], sampling: SamplingParams = SAMPLING) -> None:
        self.master.obey(Submit(handle, prompt, sampling))

    def let_one_run(self) -> StepOutput:
        """The output of the step that ends now."""
        self.executor.gate.release()
        assert wait_readable(self.master.wake_fds, DEADLINE_SECONDS)
        output = self.master.step()
        assert output is not None
        return output

    def drain(self) -> list[StepOutput]:
        outputs = []
        while self.master.has_work:
            output = self.master.step()
            if output is not None:
                outputs.append(output)
            elif self.master.seconds_to_next is None:
                outputs.append(self.let_one_run())
        return outputs

    def close(self) -> None:
        for _ in range(2):
            self.executor.gate.release()
        self.master.close()
        self.ring.close()


def answer_of(handle: int, output: StepOutput) -> list[int]:
    columns = zip(output.handles, output.token_ids, strict=True)
    return [token for owner, token in columns if owner == handle]


@pytest.fixture
def stand() -> Iterator[Stand]:
    stand = Stand()
    yield stand
    stand.close()


def test_the_next_step_is_handed_over_while_one_runs(stand: Stand) -> None:
    stand.submit(1, [1, 2])
    stand.master.step()
    assert stand.master.seconds_to_next == 0.0  # nothing is known of the time that a step takes
    stand.master.step()
    assert stand.master.seconds_to_next is None and not stand.executor.plans
    now = stand.ring.step_clock.read()
    assert now is not None and now.step == 1
    output = stand.let_one_run()
    assert (output.step, output.handles, output.first_indexes) == (1, [1], [0])
    now = stand.ring.step_clock.read()
    assert now is not None and now.step == 2


def test_a_sequence_that_ends_at_its_limit_wastes_nothing(stand: Stand) -> None:
    stand.submit(1, [1], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    stand.drain()
    assert [len(plan.rows) for plan in stand.executor.plans] == [1, 1, 1]
    assert stand.ring.step_clock.read() is None


def test_a_sequence_that_ends_by_surprise_wastes_one_place(stand: Stand) -> None:
    prompt = next(p for p in ([n] for n in range(38)) if EOS in answer_alone(p, 20)[1:])
    stand.submit(1, prompt, SamplingParams(max_tokens=20, temperature=0.0))
    outputs = stand.drain()
    answer = [token for output in outputs for token in output.token_ids]
    assert answer == answer_alone(prompt, 20) and answer[-1] == EOS
    assert len(stand.executor.plans) == len(answer) + 1


def test_a_cancelled_sequence_leaves_while_its_step_runs(stand: Stand) -> None:
    stand.submit(1, [1])
    stand.submit(2, [2])
    stand.master.step()
    stand.master.obey(Cancel([1]))
    output = stand.master.step()
    assert output is not None and [it.handle for it in output.finished] == [1]
    assert stand.let_one_run().handles == [2]
    stand.submit(1, [7])  # the handle is free again, and what was drawn for it is nobody's
    tokens = [token for output in stand.drain() for token in answer_of(1, output)]
    assert tokens == answer_alone([7], 6, ignore_eos=True)


def test_a_failed_step_voids_the_one_behind_it(stand: Stand) -> None:
    stand.submit(1, [1])
    stand.executor.fault = "after"
    stand.master.step()
    stand.master.step()
    stand.executor.gate.release()
    output = stand.let_one_run()
    assert [it.message for it in output.finished] == ["the engine failed: lost after the step"]
    assert not stand.master.has_work
    stand.submit(2, [2])
    tokens = [token for output in stand.drain() for token in output.token_ids]
    assert tokens == answer_alone([2], 6, ignore_eos=True)


def test_steps_that_keep_failing_end_the_engine(stand: Stand) -> None:
    stand.executor.gate.release(2 * MAX_FAILED_STEPS)
    with pytest.raises(DeviceFault):
        for handle in range(MAX_FAILED_STEPS):
            stand.submit(handle, [1])
            stand.executor.fault = "before"
            stand.drain()


def test_only_one_or_two_steps_can_be_under_way() -> None:
    with pytest.raises(EngineConfigError, match="steps_in_flight is 3, but must be 1 or 2"):
        make_config(steps_in_flight=3)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=14), min_size=1, max_size=7),
    kv_blocks=st.integers(11, 20),
    is_poisoned=st.booleans(),
)
def test_answers_are_those_given_alone(
    prompts: list[list[int]], kv_blocks: int, is_poisoned: bool
) -> None:
    config = ahead_config(kv_blocks=kv_blocks)
    executor = FingerprintExecutor(config.kv_blocks, config.block_size)
    asked = [*prompts, [5, POISON]] if is_poisoned else prompts
    with FlowServe.over(config, executor) as engine:
        answers = engine.generate(asked, SamplingParams(max_tokens=12, temperature=0.0))
    for prompt, answer in zip(prompts, answers, strict=False):
        assert answer.token_ids == answer_alone(prompt, 12)
    assert not is_poisoned or answers[-1].finish_reason == "error"
