from typing import Any

import msgspec
import pytest

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.messages import Submit
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler.answers import StepResultError
from services.task_executor.flowserve.scheduler.policies import make_policy
from services.task_executor.flowserve.scheduler.scheduler import Scheduler
from tests.unit.flowserve.fingerprint_executor import EOS, POISON, VOCAB_SIZE, answer_alone
from tests.unit.flowserve.harness import Harness, make_config


def plan_of(harness: Harness) -> StepPlan:
    plan = harness.step()
    assert plan is not None
    return plan


def test_one_sequence_alone() -> None:
    harness = Harness()
    handle = harness.submit([1, 2, 3, 4, 5], max_tokens=3)
    plans = [plan_of(harness) for _ in range(3)]
    assert [plan.counts for plan in plans] == [[5], [1], [1]]
    assert [plan.starts for plan in plans] == [[0], [5], [6]]
    assert plans[0].admitted[0].prompt_length == 5
    assert harness.answers[handle] == answer_alone([1, 2, 3, 4, 5], 3)
    assert harness.finished[handle].reason == "length"
    assert harness.step() is None


def test_a_long_prompt_goes_in_chunks_behind_those_that_decode() -> None:
    harness = Harness(make_config(max_step_tokens=6))
    harness.submit([1, 2, 3], max_tokens=20)
    plan_of(harness)
    harness.submit([7] * 12, max_tokens=2)
    plans = [plan_of(harness) for _ in range(3)]
    assert [plan.counts for plan in plans] == [[1, 5], [1, 5], [1, 2]]
    assert [plan.samples for plan in plans] == [[True, False], [True, False], [True, True]]


def test_the_budget_left_by_one_chunk_goes_to_the_next() -> None:
    harness = Harness(make_config(max_step_tokens=8))
    for length in (5, 6, 2):
        harness.submit([length] * length)
    assert plan_of(harness).counts == [5, 3]
    assert plan_of(harness).counts == [1, 3, 2]


def test_smaller_priorities_go_first_then_who_came_first() -> None:
    harness = Harness(make_config(max_sequences=1))
    handles = [harness.submit([n], max_tokens=1, priority=p) for n, p in enumerate([0, 1, 0, -5])]
    harness.drain()
    assert list(harness.finished) == [handles[n] for n in (3, 0, 2, 1)]


def test_an_urgent_prompt_overtakes_a_long_one_that_is_half_done() -> None:
    harness = Harness(make_config(max_step_tokens=8))
    harness.submit([1] * 30, max_tokens=1)
    plan_of(harness)
    urgent = harness.submit([2] * 6, max_tokens=1, priority=-1)
    assert plan_of(harness).counts == [6, 2]
    assert harness.finished[urgent].reason == "length"


def test_rows_bound_admission_and_are_stable() -> None:
    harness = Harness(make_config(max_sequences=2))
    for n in range(3):
        harness.submit([n], max_tokens=2 + n)
    assert plan_of(harness).rows == [0, 1]
    assert plan_of(harness).rows == [0, 1]
    plan = plan_of(harness)
    assert plan.released_rows == [0] and plan.rows == [1, 0]


def test_the_youngest_is_preempted_and_still_answers_right() -> None:
    config = make_config(kv_blocks=11, max_sequences=4, max_step_tokens=40)
    harness = Harness(config)
    prompts = [[n + 1] * 8 for n in range(4)]
    for prompt in prompts:
        harness.submit(prompt, max_tokens=30)
    harness.drain()
    admissions = [a.row for plan in harness.executor.plans for a in plan.admitted]
    assert len(admissions) > len(prompts), "nobody was preempted"
    assert harness.preemptions == len(admissions) - len(prompts)
    assert list(harness.finished) == sorted(harness.finished), "the eldest is never preempted"
    for handle, prompt in enumerate(prompts):
        assert harness.answers[handle] == answer_alone(prompt, 30, ignore_eos=True)
        assert harness.finished[handle].cached_tokens == 0, "its own KV, found again"


def test_admission_leaves_a_block_for_each_that_runs() -> None:
    harness = Harness(make_config(kv_blocks=11, max_step_tokens=40))
    harness.submit([1] * 20, max_tokens=12)
    plan_of(harness)
    harness.submit([2] * 20, max_tokens=1)  # would fit, and be preempted at once
    assert plan_of(harness).admitted == []
    harness.drain()
    assert sum(len(plan.admitted) for plan in harness.executor.plans) == 2


def test_an_end_token_ends_unless_it_is_ignored() -> None:
    prompt = next(p for p in ([n, n] for n in range(VOCAB_SIZE)) if EOS in answer_alone(p, 20))
    harness = Harness()
    obeying = harness.submit(prompt, max_tokens=20, ignore_eos=False)
    ignoring = harness.submit(prompt, max_tokens=20)
    harness.drain()
    assert harness.finished[obeying].reason == "stop"
    assert harness.answers[obeying][-1] == EOS
    assert harness.finished[ignoring].reason == "length"
    assert len(harness.answers[ignoring]) == 20


def test_the_context_ends_an_answer() -> None:
    harness = Harness()
    handle = harness.submit([1] * 30, max_tokens=1000)
    harness.drain()
    assert len(harness.answers[handle]) == 10
    assert harness.finished[handle].reason == "length"


def test_cached_tokens_are_reported_and_not_computed_again() -> None:
    harness = Harness(make_config(max_step_tokens=40))
    first = harness.submit([1] * 17, max_tokens=1)
    harness.drain()
    second = harness.submit([1] * 17, max_tokens=1)
    other_tenant = harness.submit([1] * 17, max_tokens=1, salt=b"other")
    plan = plan_of(harness)
    assert plan.counts == [1, 17] and plan.starts == [16, 0]
    assert harness.finished[first].cached_tokens == 0
    assert harness.finished[second].cached_tokens == 16
    assert harness.finished[other_tenant].cached_tokens == 0
    assert harness.started == {first: 0, second: 16, other_tenant: 0}


def test_blocks_can_be_matched_only_once_their_step_is_applied() -> None:
    harness = Harness(make_config(max_step_tokens=40))
    harness.submit([1] * 9)
    harness.submit([1] * 9)
    assert plan_of(harness).counts == [9, 9]
    harness.submit([1] * 9)
    assert plan_of(harness).counts == [1, 1, 1]


def test_a_resumed_answer_continues_at_its_index() -> None:
    harness = Harness()
    whole = answer_alone([1, 2, 3], 10, ignore_eos=True)
    handle = harness.submit([1, 2, 3], max_tokens=10, resume=whole[:6])
    assert plan_of(harness).admitted[0].prompt_length == 3
    harness.drain()
    assert harness.answers[handle] == whole
    assert harness.finished[handle].completion_tokens == 10


@pytest.mark.parametrize(
    ("resume", "ignore_eos", "reason"), [([5] * 4, True, "length"), ([5, EOS], False, "stop")]
)
def test_an_answer_that_was_complete_ends_at_once(
    resume: list[int], ignore_eos: bool, reason: str
) -> None:
    harness = Harness()
    handle = harness.submit([1], max_tokens=4, resume=resume, ignore_eos=ignore_eos)
    assert harness.step() is None
    assert harness.accepted == [handle] and harness.finished[handle].reason == reason


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([VOCAB_SIZE], {}, "token id 50 is not in the vocabulary of 50"),
        ([-1, 3], {}, "token id -1 is not in the vocabulary of 50"),
        ([1], {"resume": [99]}, "token id 99 is not in the vocabulary of 50"),
        ([1] * 40, {}, "prompt and answer together may have 40"),
        ([1] * 39, {"resume": [1, 2]}, "have 41 tokens, but together may have 40"),
        ([1] * 41, {"max_tokens": 0}, "prompt and answer together may have 40"),
    ],
)
def test_a_bad_request_fails_alone(
    prompt: list[int], options: dict[str, Any], message: str
) -> None:
    harness = Harness()
    good = harness.submit([1, 2])
    bad = harness.submit(prompt, **options)
    harness.drain()
    assert harness.finished[good].reason == "length"
    finished = harness.finished[bad]
    assert finished.reason == "error" and finished.invalid and message in finished.message
    assert harness.accepted == [good]


def test_a_full_queue_refuses_without_blaming_the_request() -> None:
    harness = Harness(make_config(max_waiting=2))
    for n in range(3):
        harness.submit([n])
    harness.drain()
    refused = harness.finished[2]
    assert refused.reason == "error" and not refused.invalid
    assert "queue is full (2 sequences wait)" in refused.message


def test_a_sequence_that_fails_fails_alone() -> None:
    harness = Harness()
    good = harness.submit([1, 2, 3])
    bad = harness.submit([1, 2, POISON])
    harness.drain()
    assert harness.finished[bad].reason == "error" and not harness.finished[bad].invalid
    assert harness.finished[bad].message == "poisoned"
    assert harness.answers[good] == answer_alone([1, 2, 3], 8, ignore_eos=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failed_step_ends_its_sequences_and_nobody_elses(moment: str) -> None:
    harness = Harness(make_config(max_sequences=2))
    doomed = [harness.submit([n]) for n in range(2)]
    waiting = harness.submit([3, 3])
    harness.executor.fault = moment
    plan_of(harness)
    assert all(harness.finished[handle].reason == "error" for handle in doomed)
    harness.drain()
    assert harness.answers[waiting] == answer_alone([3, 3], 8, ignore_eos=True)


def test_cancel_frees_everything_at_once() -> None:
    harness = Harness(make_config(max_sequences=2, max_step_tokens=6))
    decoding = harness.submit([1])
    plan_of(harness)
    prefilling = harness.submit([2] * 20)
    plan_of(harness)
    waiting = harness.submit([3])
    harness.scheduler.cancel([decoding, prefilling, waiting, 99])
    harness.scheduler.check()
    assert harness.cache.num_available == harness.config.usable_blocks
    harness.collect()
    assert {end.reason for end in harness.finished.values()} == {"cancelled"}
    harness.scheduler.cancel([decoding])
    assert harness.collect() is None
    harness.submit([4])
    assert sorted(plan_of(harness).released_rows) == [0, 1]


def test_a_handle_in_use_is_a_bug_of_the_shell() -> None:
    harness = Harness()
    harness.submit([1])
    with pytest.raises(ValueError, match="handle 0"):
        harness.scheduler.submit(Submit(0, [1], SamplingParams(1)))


@pytest.mark.parametrize(
    "result",
    [
        StepResult(1, [], [], []),
        StepResult(1, [0, 1], [3, 3], [0.0, 0.0]),
        StepResult(2, [0], [3], [0.0]),
        StepResult(1, [0], [3], [0.0], failures={3: "not asked"}),
    ],
)
def test_an_answer_that_does_not_fit_the_plan_changes_nothing(result: StepResult) -> None:
    config = make_config()
    scheduler = Scheduler(config, RelationalTensorCache(config.kv_blocks, config.block_size))
    scheduler.submit(Submit(0, [1], SamplingParams(4)))
    scheduler.plan()
    with pytest.raises(StepResultError, match="step 1 asked for tokens of rows \\[0\\]"):
        scheduler.apply(result)
    scheduler.fail_flights("bad answer")
    assert not scheduler.has_work
    scheduler.check()


def test_a_chunk_can_fail_too() -> None:
    config = make_config(max_step_tokens=8)
    scheduler = Scheduler(config, RelationalTensorCache(config.kv_blocks, config.block_size))
    scheduler.submit(Submit(0, [1] * 20, SamplingParams(4)))
    plan = scheduler.plan()
    assert plan is not None and plan.samples == [False]
    scheduler.apply(StepResult(plan.step, [], [], [], failures={plan.rows[0]: "no memory"}))
    output = scheduler.take_output()
    assert output is not None and output.finished[0].message == "no memory"
    assert output.kv_changes == []
    scheduler.check()


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    config = msgspec.structs.replace(make_config(), policy="magic")
    known = "policy is 'magic', but must be one of: fcfs, priority, slo"
    with pytest.raises(ValueError, match=known):
        make_policy(config)
