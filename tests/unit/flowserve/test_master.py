import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.engine import FlowServe, GenerationError
from services.task_executor.flowserve.failed_steps import MAX_FAILED_STEPS
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Cancel, Submit
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.ring import Ring
from services.task_executor.flowserve.step_timing import StepTimePredictor
from tests.unit.flowserve.fingerprint_executor import (
    POISON,
    DeviceFault,
    FingerprintExecutor,
    answer_alone,
)
from tests.unit.flowserve.harness import make_config

SAMPLING = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


def make_executor() -> FingerprintExecutor:
    config = make_config()
    return FingerprintExecutor(config.kv_blocks, config.block_size)


def test_a_step_reports_what_it_did() -> None:
    master = Master(make_config(), make_executor())
    assert master.step() is None and not master.has_work
    master.obey(Submit(5, [1, 2], SAMPLING))
    output = master.step()
    assert output is not None
    assert (output.accepted, output.handles, output.first_indexes) == ([5], [5], [0])
    assert (output.step, output.running, output.waiting) == (1, 1, 0)
    master.obey(Cancel([5]))
    output = master.step()
    assert output is not None and output.finished[0].reason == "cancelled"
    assert output.free_blocks == 16 and not master.has_work


def test_one_failed_step_is_survived() -> None:
    executor = make_executor()
    master = Master(make_config(), executor)
    master.obey(Submit(1, [1], SAMPLING))
    executor.fault = "after"
    output = master.step()
    assert output is not None
    (finished,) = output.finished
    assert finished.reason == "error" and not finished.invalid
    assert finished.message == "the engine failed: lost after the step"
    master.obey(Submit(2, [1], SAMPLING))
    output = master.step()
    assert output is not None and output.handles == [2]


def test_steps_that_keep_failing_end_the_engine() -> None:
    executor = make_executor()
    master = Master(make_config(), executor)
    for handle in range(MAX_FAILED_STEPS - 1):
        master.obey(Submit(handle, [1], SAMPLING))
        executor.fault = "before"
        master.step()
    master.obey(Submit(9, [1], SAMPLING))
    executor.fault = "before"
    with pytest.raises(DeviceFault):
        master.step()


class ClockReader:
    """Looks at the step clock while a step runs, as the shell would."""

    def __init__(self, inner: FingerprintExecutor, ring: Ring) -> None:
        self._inner = inner
        self._clock = ring.step_clock
        self.seen: list[tuple[int, float]] = []

    def execute(self, plan: StepPlan) -> StepResult:
        now = self._clock.read()
        assert now is not None
        self.seen.append((now.step, now.started_seconds))
        return self._inner.execute(plan)

    def close(self) -> None:
        self._inner.close()


def test_the_step_clock_runs_only_during_steps() -> None:
    ring = Ring.create(64)
    executor = ClockReader(make_executor(), ring)
    master = Master(make_config(), executor, step_clock=ring.step_clock, monotonic=lambda: 12.0)
    master.obey(Submit(1, [1], SAMPLING))
    master.step()
    master.step()
    assert executor.seen == [(1, 12.0), (2, 12.0)]
    assert ring.step_clock.read() is None
    ring.close()


def test_close_ends_everybody() -> None:
    executor = make_executor()
    master = Master(make_config(), executor)
    master.obey(Submit(1, [1], SAMPLING))
    master.step()
    output = master.close()
    assert output is not None and output.finished[0].reason == "cancelled"
    assert executor.is_closed


def test_a_step_that_ctrl_c_meets_can_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(FingerprintExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            raise KeyboardInterrupt

    config = make_config()
    ring = Ring.create(64)
    executor = Interrupted(config.kv_blocks, config.block_size)
    master = Master(config, executor, step_clock=ring.step_clock)
    master.obey(Submit(1, [1, 2], SAMPLING))
    with pytest.raises(KeyboardInterrupt):
        master.step()
    output = master.close()
    assert output is not None and output.finished[0].reason == "cancelled"
    assert not caplog.text, "that somebody wanted it to end is no fault"
    assert ring.step_clock.read() is None
    ring.close()


def test_steps_are_predicted_from_steps_of_their_size() -> None:
    timing = StepTimePredictor()
    assert timing.predict(64) == 0.0
    for _ in range(50):
        timing.observe(64, 0.01)
        timing.observe(1024, 0.1)
    assert timing.predict(65) == pytest.approx(0.01)
    assert timing.predict(1) == pytest.approx(0.01)
    assert timing.predict(1024) == pytest.approx(0.1)
    assert timing.predict(4096) == pytest.approx(0.4)


def test_a_step_that_was_held_up_does_not_change_the_least_that_one_takes() -> None:
    timing = StepTimePredictor()
    assert timing.least(64) == 0.0
    for seconds in (0.012, 0.01, 0.5):
        timing.observe(64, seconds)
    assert 0.01 <= timing.least(64) < 0.021 < timing.predict(64)
    for _ in range(500):  # steps that have become slower for good are believed in the end
        timing.observe(64, 0.05)
    assert timing.least(64) == pytest.approx(0.05, rel=0.01)


def test_the_library_answers_every_prompt_in_order() -> None:
    prompts = [[1, 2, 3], [], [4] * 20, [5, POISON]]
    with FlowServe.over(make_config(), make_executor()) as engine:
        answers = engine.generate(prompts, SAMPLING)
    reasons = [answer.finish_reason for answer in answers]
    assert reasons == ["length", "error", "length", "error"]
    assert answers[0].token_ids == answer_alone(prompts[0], 6, ignore_eos=True)
    assert answers[2].token_ids == answer_alone(prompts[2], 6, ignore_eos=True)
    assert answers[2].logprobs == [-float(token) for token in answers[2].token_ids]
    assert "prompt is empty" in answers[1].message


def test_streams_can_be_read_in_turn_and_left() -> None:
    with FlowServe.over(make_config(), make_executor()) as engine:
        first, second = engine.stream([1, 2], SAMPLING), engine.stream([3], SAMPLING)
        pairs = [(next(first), next(second)) for _ in range(3)]
        first.close()
        rest = list(second)
        assert [a for (a, _), _ in pairs] == answer_alone([1, 2], 3, ignore_eos=True)
        tokens = [b for _, (b, _) in pairs] + [token for token, _ in rest]
        assert tokens == answer_alone([3], 6, ignore_eos=True)
        with pytest.raises(GenerationError, match="prompt is empty"):
            list(engine.stream([], SAMPLING))
