"""Defaults, logprobs, prompts and special tokens of a whole job executor over real gRPC."""

import asyncio
from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow.v1 import cluster_pb2, jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.sampling import PROMPT_LOGPROBS_MAX
from tests.integration.job_executor_rig import (
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    folder,
    gateway,
    rig,
    tokenizer,
)

__all__ = ["executor", "folder", "gateway", "rig", "tokenizer"]

BOS, EOS, TURN = range(3)
INVALID = types.ERROR_CODE_INVALID_REQUEST
LENGTH = types.FINISH_REASON_LENGTH


def prompt_logprobs(handle: int, first: int, count: int) -> tasks_pb2.PromptLogprobs:
    """Every position p has logprob -p, rank 2 and one alternative: token p."""
    positions = range(first, first + count)
    return tasks_pb2.PromptLogprobs(
        handle=handle,
        first_position=first,
        logprobs=[-float(p) for p in positions],
        ranks=[2] * count,
        top_token_ids=list(positions),
        top_logprobs=[-0.5] * count,
    )


async def finish(executor: FakeTaskExecutor, handle: int, *ids: int) -> None:
    executor.emit(handle, list(ids))
    executor.finish(handle)


async def show_facts(rig: Rig, executor: FakeTaskExecutor, **facts: Any) -> None:
    rig.deployment.facts.MergeFrom(cluster_pb2.ModelFacts(**facts))
    await rig.show(executor)


async def test_the_authors_defaults_reach_the_task(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    defaults = cluster_pb2.GenerationDefaults(temperature=0.5, top_k=7, max_tokens=11)
    await show_facts(rig, executor, defaults=defaults)
    await gateway.submit(1, prompt=[5], sampling=types.SamplingParams(top_k=0, seed=3))
    _, task = await executor.task()
    sampling = task.sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 0, 11)
    assert sampling.HasField("repetition_penalty") and sampling.repetition_penalty == 1.0
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (1.0, 0.0, 3)


async def test_no_tokens_asked_for_are_none(gateway: Gateway, executor: FakeTaskExecutor) -> None:
    await gateway.submit(
        1, prompt="a task", sampling=types.SamplingParams(max_tokens=0), return_prompt=True
    )
    handle, task = await executor.task()
    assert task.sampling.HasField("max_tokens") and task.sampling.max_tokens == 0
    executor.finish(handle, LENGTH)
    end = await gateway.until_finished(1)
    assert (end.reason, end.usage.completion_tokens) == (LENGTH, 0)
    assert gateway.prompts[1, 0].text == "a task"
    assert list(gateway.prompts[1, 0].token_ids) == list(task.prompt_token_ids)


async def test_a_prompt_that_fills_the_context_can_be_looked_at(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    whole = [5] * rig.tokens_max
    await gateway.submit(1, prompt=whole, sampling=types.SamplingParams(max_tokens=0))
    _, task = await executor.task()
    assert len(task.prompt_token_ids) == rig.tokens_max and task.sampling.max_tokens == 0
    await gateway.submit(2, prompt=[*whole, 5], sampling=types.SamplingParams(max_tokens=0))
    error = await gateway.until_refused(2)
    assert error.reason == "context_length_exceeded" and "for the answer" not in error.message
    await gateway.submit(3, prompt=whole, sampling=types.SamplingParams(max_tokens=1))
    assert "at least one is needed for the answer" in (await gateway.until_refused(3)).message


async def test_every_token_comes_with_its_bytes_and_alternatives(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(logprobs=2))
    asked, _ = await executor.task(1)
    await gateway.submit(2, prompt="x")
    other, _ = await executor.task(2)
    assert executor.tasks[asked].sampling.logprobs == 2
    assert not executor.tasks[other].sampling.HasField("logprobs")
    ids = [*tokenizer.encode("🦖", add_special_tokens=False).ids, EOS]
    for index, token_id in enumerate(ids):
        executor.send(
            tasks_pb2.TaskTokenBatch(
                handles=[other, asked],
                first_token_indexes=[index, index],
                token_counts=[1, 1],
                token_ids=[7, token_id],
                logprobs=[-0.25, -0.5],
                top_positions=[1],
                top_counts=[2],
                top_token_ids=[token_id, TURN],
                top_logprobs=[-0.5, -1.5],
            )
        )
    executor.finish(asked)
    executor.finish(other)
    await gateway.until_finished(1)
    await gateway.until_finished(2)
    details = gateway.details[1, 0]
    assert b"".join(content for content, _ in details) == "🦖<eos>".encode()
    assert [tops for _, tops in details] == [
        [(token_id, content, -0.5), (TURN, b"<turn>", -1.5)]
        for token_id, (content, _) in zip(ids, details, strict=True)
    ]
    assert (2, 0) not in gateway.details
    assert gateway.text(1) == "🦖"


async def test_prompts_come_back_as_they_were_given_and_ids_as_text(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    ids = [BOS, *tokenizer.encode("emoji 😀", add_special_tokens=False).ids]
    prompts = [jobs_pb2.Prompt(text="a task"), jobs_pb2.Prompt(tokens=jobs_pb2.TokenIds(ids=ids))]
    work = jobs_pb2.CompletionInput(prompts=prompts)
    await gateway.submit(1, completion=work, n=2, return_prompt=True)
    await executor.task(4)
    for handle in executor.tasks:
        await finish(executor, handle, 7)
    for choice in range(4):
        await gateway.until_finished(1, choice)
    assert [gateway.prompts[1, i].text for i in range(4)] == ["a task"] * 2 + ["<bos>emoji 😀"] * 2
    returned = gateway.prompts[1, 3]
    assert list(returned.token_ids) == ids
    assert b"".join(returned.token_bytes) == "<bos>emoji 😀".encode()
    assert not returned.logprobs


async def test_a_chats_prompt_is_what_the_template_made(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, chat="hi", return_prompt=True)
    handle, _ = await executor.task()
    await finish(executor, handle, 7)
    await gateway.until_finished(1)
    assert gateway.prompts[1, 0].text == "<bos><turn>user\nhi\n<turn>assistant\n"


async def test_prompt_logprobs_are_gathered_over_several_messages(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, prompt=[5, 6, 7, 8], sampling=types.SamplingParams(prompt_logprobs=1))
    handle, task = await executor.task()
    assert task.sampling.prompt_logprobs == 1
    executor.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[prompt_logprobs(handle, 1, 1)]))
    executor.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[prompt_logprobs(handle, 2, 2)]))
    await finish(executor, handle, 9)
    await gateway.until_finished(1)
    prompt = gateway.prompts[1, 0]
    assert list(prompt.logprobs) == [-1.0, -2.0, -3.0]
    assert (list(prompt.ranks), list(prompt.top_counts)) == ([2] * 3, [1] * 3)
    assert list(prompt.top_token_ids) == [1, 2, 3]
    assert list(prompt.top_token_bytes)[:2] == [b"<eos>", b"<turn>"]


async def test_a_prompt_whose_logprobs_have_a_gap_fails_its_job_alone(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, prompt=[5, 6, 7], sampling=types.SamplingParams(prompt_logprobs=0))
    broken, _ = await executor.task(1)
    await gateway.submit(2, prompt="x")
    fine, _ = await executor.task(2)
    await gateway.until_admitted(1)
    executor.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[prompt_logprobs(broken, 2, 1)]))
    await finish(executor, fine, 7)
    end = await gateway.until_finished(1)
    assert end.error.code == types.ERROR_CODE_INTERNAL and (1, 0) not in gateway.prompts
    assert (await gateway.until_finished(2)).reason == types.FINISH_REASON_STOP


async def test_a_task_that_moved_tells_its_prompt_from_the_start(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    second = FakeTaskExecutor("te-2")
    await second.start()
    await rig.show(executor, second)
    executor.accepts = False
    await gateway.submit(1, prompt=[5, 6, 7], sampling=types.SamplingParams(prompt_logprobs=1))
    handle, _ = await executor.task()
    executor.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[prompt_logprobs(handle, 1, 1)]))
    executor.end_stream()
    handle, _ = await second.task()
    second.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[prompt_logprobs(handle, 1, 2)]))
    await finish(second, handle, 9)
    assert (await gateway.until_finished(1)).reason == types.FINISH_REASON_STOP
    assert list(gateway.prompts[1, 0].logprobs) == [-1.0, -2.0]
    await second.stop()


async def test_special_tokens_are_shown_where_asked_but_never_the_end(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await show_facts(rig, executor, eos_token_ids=[EOS])
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(show_special_tokens=True))
    await gateway.submit(2, prompt="x")
    ignoring = types.SamplingParams(show_special_tokens=True, ignore_eos=True)
    await gateway.submit(3, prompt="x", sampling=ignoring)
    await executor.task(3)
    for handle in executor.tasks:
        await finish(executor, handle, TURN, EOS)
    await asyncio.gather(*(gateway.until_finished(handle) for handle in (1, 2, 3)))
    assert [gateway.text(handle) for handle in (1, 2, 3)] == ["<turn>", "", "<turn><eos>"]
    assert gateway.token_ids[1, 0] == [TURN, EOS]


async def test_a_stop_string_before_the_least_tokens_is_text(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    sampling = types.SamplingParams(stop=["."], min_tokens=5)
    await gateway.submit(1, prompt="x", sampling=sampling)
    handle, task = await executor.task()
    assert task.sampling.min_tokens == 5
    dot, a = (tokenizer.encode(letter, add_special_tokens=False).ids[0] for letter in ".a")
    executor.emit(handle, [a, dot, a, a, a, dot, a])
    end = await gateway.until_finished(1)
    assert gateway.text() == "a.aaa" and end.usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logit_bias": {420: 1.0}}, "logit_bias.420"),
        ({"stop_token_ids": [1, 420]}, "stop_token_ids[1]"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"min_tokens": 200}, "min_tokens"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
async def test_sampling_that_cannot_be_followed_is_refused_by_name(
    gateway: Gateway, executor: FakeTaskExecutor, sampling: dict[str, Any], param: str
) -> None:
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(**sampling))
    error = await gateway.until_refused(1)
    assert (error.code, error.param, error.reason) == (INVALID, param, "out_of_range")
    await gateway.submit(2, prompt="x")
    await gateway.until_admitted(2)


async def test_a_grammar_that_the_engine_refuses_refuses_the_job(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    grammar = types.Grammar(regex="(", param="guided_regex")
    executor.refusal = types.Error(code=INVALID, message="no such regex", param="guided_regex")
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(grammar=grammar))
    error = await gateway.until_refused(1)
    assert (error.code, error.param) == (INVALID, "guided_regex")
    assert next(iter(executor.tasks.values())).sampling.grammar == grammar


async def test_the_largest_prompt_with_all_alternatives_fits_in_messages(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    length, tops = 32 * 1024, 20
    rig.deployment.facts.context_length = length + 1
    rig.tokens_max = length + 1
    await rig.show(executor)
    job = {"prompt": [5] * length, "sampling": types.SamplingParams(prompt_logprobs=tops)}
    assert 4 * length * (1 + tops) > PROMPT_LOGPROBS_MAX > 2 * length * (1 + tops)
    await gateway.submit(1, n=4, **job)  # type: ignore[arg-type]
    error = await gateway.until_refused(1)
    assert (error.code, error.param) == (INVALID, "prompt_logprobs")
    await gateway.submit(2, n=2, **job)  # type: ignore[arg-type]
    await executor.task(2)
    for handle in executor.tasks:
        for first in range(1, length, 4096):
            count = min(4096, length - first)
            piece = tasks_pb2.PromptLogprobs(
                handle=handle,
                first_position=first,
                logprobs=[-1.0] * count,
                ranks=[1] * count,
                top_token_ids=list(range(tops)) * count,
                top_logprobs=[-1.0] * (tops * count),
            )
            executor.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[piece]))
        await finish(executor, handle, 9)
    for choice in range(2):
        await gateway.until_finished(2, choice)
        assert len(gateway.prompts[2, choice].top_logprobs) == (length - 1) * tops
