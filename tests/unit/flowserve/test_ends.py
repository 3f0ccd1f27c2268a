"""What ends an answer, and what must be reported before it may."""

import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import (
    PromptLogprobs,
    StepOutput,
    Submit,
    TopLogprobs,
)
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler import scheduler as scheduling
from services.task_executor.flowserve.scheduler.scheduler import Scheduler
from tests.unit.flowserve.fingerprint_executor import EOS, answer_alone
from tests.unit.flowserve.harness import Harness, make_config

PROMPT = [1, 2, 3, 4, 5]


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    return plan


def applied(scheduler: Scheduler, result: StepResult) -> StepOutput:
    scheduler.apply(result)
    scheduler.check()
    output = scheduler.take_output()
    assert output is not None
    return output


def make_scheduler(*samplings: SamplingParams) -> Scheduler:
    config = make_config()
    scheduler = Scheduler(config, RelationalTensorCache(config.kv_blocks, config.block_size))
    for handle, sampling in enumerate(samplings):
        scheduler.submit(Submit(handle, PROMPT, sampling))
    return scheduler


def test_without_tokens_wanted_the_prompt_is_computed_and_can_be_matched() -> None:
    harness = Harness()
    handle = harness.submit([1] * 9, max_tokens=0)
    assert harness.drain() == 1
    finished = harness.finished[handle]
    assert (finished.reason, finished.completion_tokens) == ("length", 0)
    assert harness.answers[handle] == []
    again = harness.submit([1] * 9, max_tokens=2)
    harness.drain()
    assert harness.finished[again].cached_tokens == 8


def test_without_tokens_wanted_the_prompt_may_fill_the_context() -> None:
    harness = Harness()
    handle = harness.submit([1] * 40, max_tokens=0, prompt_logprobs=1)
    harness.drain()
    assert harness.finished[handle].reason == "length"
    assert harness.scored[handle] == 40


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_stop_token_ends_the_answer_also_where_eos_does_not(ignore_eos: bool) -> None:
    alone = answer_alone(PROMPT, 8, ignore_eos=True)
    stop = next(token for token in alone[2:] if token != EOS)
    harness = Harness()
    handle = harness.submit(PROMPT, stop_token_ids=(stop, 49), ignore_eos=ignore_eos)
    harness.drain()
    assert harness.answers[handle] == alone[: alone.index(stop) + 1]
    assert harness.finished[handle].reason == "stop"


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_a_complete_grammar_ends_the_answer_with_its_last_token(max_tokens: int) -> None:
    scheduler = make_scheduler(SamplingParams(max_tokens), SamplingParams(8))
    plan = planned(scheduler)
    result = StepResult(plan.step, plan.rows, [7, 8], [0.0, 0.0], completed_rows=plan.rows[:1])
    output = applied(scheduler, result)
    assert output.token_ids == [7, 8]
    (finished,) = output.finished
    assert (finished.handle, finished.reason, finished.completion_tokens) == (0, "stop", 1)
    assert planned(scheduler).released_rows == plan.rows[:1]


def test_a_row_that_wants_nothing_drawn_ends_once_though_its_grammar_is_complete() -> None:
    scheduler = make_scheduler(SamplingParams(0, logprobs=1), SamplingParams(8, logprobs=1))
    plan = planned(scheduler)
    tops = TopLogprobs([0, 1], [1, 1], [7, 8], [-0.1, -0.2])
    result = StepResult(
        plan.step, plan.rows, [7, 8], [0.0, 0.0], completed_rows=plan.rows[:1], tops=tops
    )
    output = applied(scheduler, result)
    assert (output.handles, output.token_ids) == ([1], [8])
    assert output.tops == TopLogprobs([0], [1], [8], [-0.2])
    (finished,) = output.finished
    assert (finished.handle, finished.reason, finished.completion_tokens) == (0, "length", 0)


def test_a_token_that_does_not_count_takes_its_alternatives_with_it() -> None:
    tops = TopLogprobs([0, 2], [2, 1], [5, 6, 7], [-0.1, -0.2, -0.3])
    result = StepResult(1, [3, 4, 5], [5, 9, 7], [0.0, 0.1, 0.2], completed_rows=[3], tops=tops)
    result.fail({3: "the grammar does not allow it"})
    assert (result.rows, result.token_ids, result.logprobs) == ([4, 5], [9, 7], [0.1, 0.2])
    assert result.tops == TopLogprobs([1], [1], [7], [-0.3])
    assert result.completed_rows == [] and result.failures.keys() == {3}


def test_a_prompt_that_is_scored_matches_nothing_until_it_is() -> None:
    harness = Harness()
    harness.submit([1] * 13, max_tokens=1)
    harness.drain()
    scored = harness.submit([1] * 13, max_tokens=1, prompt_logprobs=2)
    plain = harness.submit([1] * 13, max_tokens=1)
    harness.drain()
    assert harness.finished[scored].cached_tokens == 0
    assert harness.finished[plain].cached_tokens == 12
    assert harness.scored[scored] == 13


def test_a_preempted_prompt_reports_no_score_twice() -> None:
    """Both grow until one has to give way; `Harness` holds every report against the last."""
    harness = Harness(make_config(kv_blocks=11, max_sequences=2))
    handles = [harness.submit([n] * 9, max_tokens=25, prompt_logprobs=1) for n in (1, 2)]
    harness.drain()
    admissions = sum(len(plan.admitted) for plan in harness.executor.plans)
    assert admissions > 2, "nobody was preempted"
    for handle, n in zip(handles, (1, 2), strict=True):
        assert harness.answers[handle] == answer_alone([n] * 9, 25, ignore_eos=True)
        assert harness.scored[handle] == 9


def test_scores_of_one_step_are_few_enough_for_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "MAX_SCORED_TOKENS", 7)
    harness = Harness(make_config(max_step_tokens=40))
    plain = harness.submit([3] * 6)
    scored = [harness.submit([n] * 10, max_tokens=2, prompt_logprobs=1) for n in (1, 2)]
    last = harness.submit([4] * 3)
    plans = []
    while plan := harness.step():
        plans.append(plan)
    assert plans[0].counts == [6, 7]
    assert plans[1].counts == [1, 3, 4]
    assert all(harness.scored[handle] == 10 for handle in scored)
    for handle in (plain, last):
        prompt = harness.submitted[handle].prompt_token_ids
        assert harness.answers[handle] == answer_alone(prompt, 8, ignore_eos=True)


def test_a_prompt_whose_scores_are_not_finite_fails_alone() -> None:
    scheduler = make_scheduler(SamplingParams(8, prompt_logprobs=0), SamplingParams(8))
    plan = planned(scheduler)
    report = PromptLogprobs(plan.rows[0], 1, [-0.5] * 4, [1] * 4, [], [])
    result = StepResult(plan.step, plan.rows, [7, 8], [0.0, 0.0], prompt_logprobs=[report])
    result.fail({plan.rows[0]: "not finite"})
    output = applied(scheduler, result)
    assert output.handles == [1]
    assert [end.message for end in output.finished] == ["not finite"]


def test_an_end_that_only_the_grammar_allows_is_an_end_also_before_min_tokens() -> None:
    scheduler = make_scheduler(SamplingParams(8, min_tokens=5))
    plan = planned(scheduler)
    output = applied(scheduler, StepResult(plan.step, plan.rows, [EOS], [0.0]))
    assert [(end.reason, end.completion_tokens) for end in output.finished] == [("stop", 1)]
