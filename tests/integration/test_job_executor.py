"""A whole job executor over real gRPC, between a gateway client and a scripted task executor."""

import asyncio

import grpc
import pytest
from tokenizers import Tokenizer

from deepflow import clock
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.job_executor_rig import (
    INCARNATION,
    SECONDS,
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    folder,
    gateway,
    rig,
    tokenizer,
)
from tests.servers import until

__all__ = ["executor", "folder", "gateway", "rig", "tokenizer"]

BOS = 0


async def test_a_chat_becomes_a_task_and_its_tokens_text(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig, tokenizer: Tokenizer
) -> None:
    assert gateway.welcome.job_executor_id == rig.server.id
    await gateway.submit(1, chat="What is a task?")
    handle, task = await executor.task()
    await gateway.until_admitted(1)
    prompt = tokenizer.decode(list(task.prompt_token_ids), skip_special_tokens=False)
    assert prompt == "<bos><turn>user\nWhat is a task?\n<turn>assistant\n"
    assert list(task.prompt_token_ids).count(BOS) == 1
    assert task.sampling.max_tokens == 200 - len(task.prompt_token_ids)
    assert (task.job_id, task.model, task.context.request_id) == ("job-1", "demo", "req-1")
    assert task.context.trace.traceparent.split("-")[1] == "a" * 32

    answer = "emoji 😀 and more"
    ids = tokenizer.encode(answer, add_special_tokens=False).ids
    for index, token_id in enumerate(ids):
        executor.emit(handle, [token_id], index)
    executor.finish(handle, cached=3)
    end = await gateway.until_finished(1)
    assert gateway.text() == answer
    assert gateway.token_ids[1, 0] == ids
    assert gateway.incarnations == {INCARNATION}
    assert end.reason == types.FINISH_REASON_STOP
    usage = (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens)
    assert usage == (len(task.prompt_token_ids), len(ids), 3)
    assert rig.server.streams.num_jobs == 0
    log = rig.server.ended.get("job-1", clock.monotonic())
    assert log is not None and list(log.choices[0].token_ids) == ids


async def test_choices_are_numbered_prompt_by_prompt(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    prompts = [jobs_pb2.Prompt(text="one"), jobs_pb2.Prompt(tokens=jobs_pb2.TokenIds(ids=[5, 6]))]
    job = {"completion": jobs_pb2.CompletionInput(prompts=prompts), "n": 2}
    executor.accepts = False
    await gateway.submit(1, **job)  # type: ignore[arg-type]
    await executor.task(4)
    tasks = list(executor.tasks.values())
    assert [task.choice_index for task in tasks] == [0, 1, 2, 3]
    assert list(tasks[2].prompt_token_ids) == [5, 6]
    assert tasks[0].prompt_token_ids[0] == BOS
    assert not gateway.admitted


async def test_admission_waits_for_the_last_task(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    executor.accepts = False
    await gateway.submit(1, prompt="x", n=2)
    await executor.task(2)
    first, second = executor.tasks
    executor.emit(first, [7])
    executor.send(tasks_pb2.TaskTokenBatch(accepted_handles=[first]))
    await gateway.submit(2, prompt="")  # its refusal shows that the stream is not blocked
    await gateway.until_refused(2)
    assert not gateway.admitted and not gateway.token_ids
    executor.send(tasks_pb2.TaskTokenBatch(accepted_handles=[second]))
    await gateway.until_admitted(1)
    await gateway.until_tokens(1)


async def test_a_stop_string_across_tokens_ends_the_choice_and_its_task(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(stop=["\nUser:", "§"]))
    handle, _ = await executor.task()
    ids = tokenizer.encode("fine.\nUser: hm", add_special_tokens=False).ids
    for index, token_id in enumerate(ids):
        executor.emit(handle, [token_id], index)
    end = await gateway.until_finished(1)
    assert gateway.text() == "fine."
    assert end.reason == types.FINISH_REASON_STOP
    completed = len(tokenizer.encode("fine.\nUser:", add_special_tokens=False).ids)
    assert end.usage.completion_tokens == len(gateway.token_ids[1, 0]) == completed
    await until(lambda: executor.cancelled == [handle], what="the cancelled task")


async def test_text_held_back_for_a_stop_string_comes_with_the_end(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await gateway.submit(1, prompt="x", sampling=types.SamplingParams(stop=["stop here"]))
    handle, _ = await executor.task()
    executor.emit(handle, tokenizer.encode("a stop", add_special_tokens=False).ids)
    executor.finish(handle, types.FINISH_REASON_LENGTH)
    end = await gateway.until_finished(1)
    assert (end.text_tail, end.reason) == ("stop", types.FINISH_REASON_LENGTH)
    assert gateway.text() == "a stop"


async def test_credit_holds_back_one_job_and_nobody_else(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, window=4, prompt="slow")
    slow, _ = await executor.task(1)
    await gateway.submit(2, window=1000, prompt="fast")
    fast, _ = await executor.task(2)
    executor.emit(slow, list(range(10, 20)))
    executor.finish(slow)
    executor.emit(fast, list(range(10, 20)))
    executor.finish(fast)
    await gateway.until_finished(2)
    await gateway.until_tokens(4)
    assert len(gateway.token_ids[1, 0]) == 4 and (1, 0) not in gateway.finished
    await gateway.send(credit=jobs_pb2.JobCredit(handle=1, choice_index=0, delivered_tokens=4))
    await gateway.until_tokens(8)
    assert (1, 0) not in gateway.finished
    await gateway.send(credit=jobs_pb2.JobCredit(handle=1, choice_index=0, delivered_tokens=8))
    await gateway.until_finished(1)
    assert gateway.token_ids[1, 0] == list(range(10, 20))


async def test_a_resumed_choice_goes_on_after_what_the_client_holds(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("a 🦖 b", add_special_tokens=False).ids
    ends = range(1, len(ids))
    cut = next(end for end in ends if tokenizer.decode(ids[:end]).endswith("\ufffd"))
    held = ids[:cut]  # ends within the emoji
    resume = [jobs_pb2.ResumePoint(choice_index=0, resume_token_ids=held)]
    await gateway.submit(1, window=100, prompt="x", resume=resume)
    handle, task = await executor.task()
    assert list(task.resume_token_ids) == held
    executor.emit(handle, ids[cut:], first=cut)
    executor.finish(handle)
    end = await gateway.until_finished(1)
    assert gateway.token_ids[1, 0][cut:] == ids[cut:]
    assert gateway.text() == "🦖 b"
    assert end.usage.completion_tokens == len(ids)


async def test_cancel_frees_the_task_at_once(gateway: Gateway, executor: FakeTaskExecutor) -> None:
    await gateway.submit(1, prompt="x", n=2)
    await executor.task(2)
    await gateway.until_admitted(1)
    await gateway.send(cancel=jobs_pb2.CancelJob(handle=1))
    await until(lambda: len(executor.cancelled) == 2, what="both cancelled tasks")
    assert (await gateway.until_finished(1, 1)).reason == types.FINISH_REASON_CANCELLED


async def test_a_broken_gateway_stream_cancels_its_jobs(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.submit(1, prompt="x")
    handle, _ = await executor.task()
    await gateway.close()
    await until(lambda: executor.cancelled == [handle], what="the cancelled task")
    assert rig.server.streams.num_jobs == 0


async def test_the_deadline_ends_a_job(gateway: Gateway, executor: FakeTaskExecutor) -> None:
    context = types.WorkContext(deadline_unix_ms=clock.unix_ms() + 10_000)
    await gateway.submit(1, prompt="x", context=context)
    handle, _ = await executor.task()
    end = await gateway.until_finished(1)
    assert end.reason == types.FINISH_REASON_ERROR
    assert end.error.code == types.ERROR_CODE_DEADLINE_EXCEEDED
    await until(lambda: executor.cancelled == [handle], what="the cancelled task")


async def test_a_lost_task_executor_fails_the_jobs_that_had_tokens(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.submit(1, prompt="x")
    handle, _ = await executor.task()
    executor.emit(handle, [7])
    await gateway.until_tokens(1)
    executor.end_stream()
    end = await gateway.until_finished(1)
    assert end.reason == types.FINISH_REASON_ERROR
    assert end.error.code == types.ERROR_CODE_UNAVAILABLE
    assert end.error.retry_after_seconds > 0
    await until(lambda: rig.num_live == 1, what="the link is back by itself")
    await gateway.submit(2, prompt="x")
    await gateway.until_admitted(2)


async def test_a_task_without_tokens_moves_to_another_task_executor(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    second = FakeTaskExecutor("te-2")
    await second.start()
    await rig.show(executor, second)
    executor.accepts = False
    await gateway.submit(1, prompt="x", attempt_epoch=5)
    _, before = await executor.task()
    executor.end_stream()
    handle, after = await second.task()
    await gateway.until_admitted(1)
    assert (before.attempt_epoch, after.attempt_epoch) == (5, 6)
    second.emit(handle, [7])
    second.finish(handle)
    assert (await gateway.until_finished(1)).reason == types.FINISH_REASON_STOP
    await second.stop()


async def test_a_refused_task_waits_a_moment_for_who_comes_next(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task executors that are replaced one by one are linked one by one."""
    monkeypatch.setattr("services.job_executor.links.links.SETTLE_SECONDS_MAX", SECONDS)
    executor.refusal = types.Error(
        code=types.ERROR_CODE_UNAVAILABLE, message="this task executor is draining"
    )
    await gateway.submit(1, prompt="x")
    await gateway.submit(2, prompt="x")
    await executor.task(2)
    await gateway.send(cancel={"handle": 2})  # it waits for nobody any more
    assert (await gateway.until_refused(2)).code == types.ERROR_CODE_CANCELLED
    assert not gateway.refused.keys() - {2}
    second = FakeTaskExecutor("te-2")
    await second.start()
    await rig.show(executor, second)
    handle, _ = await second.task()
    await gateway.until_admitted(1)
    second.finish(handle)
    assert (await gateway.until_finished(1)).reason == types.FINISH_REASON_STOP
    assert len(second.tasks) == 1
    await second.stop()


async def test_a_full_task_executor_refuses_and_the_job_says_so(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    executor.refusal = types.Error(
        code=types.ERROR_CODE_RATE_LIMITED, message="full", retry_after_seconds=2
    )
    await gateway.submit(1, prompt="x")
    error = await gateway.until_refused(1)
    assert (error.code, error.retry_after_seconds) == (types.ERROR_CODE_RATE_LIMITED, 2)


async def test_a_draining_job_executor_ends_its_jobs_and_takes_no_more(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.submit(1, prompt="x")
    handle, _ = await executor.task()
    rig.server.lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
    drained = asyncio.create_task(rig.server.streams.drain(0))
    await asyncio.sleep(0)
    await gateway.submit(2, prompt="x")
    assert (await gateway.until_refused(2)).code == types.ERROR_CODE_UNAVAILABLE
    assert not drained.done()
    executor.finish(handle)
    await gateway.until_finished(1)
    await drained


async def test_a_gateway_that_has_not_learnt_of_it_is_still_served(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    rig.server.lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
    drained = asyncio.create_task(rig.server.streams.drain(60))
    await gateway.submit(1, prompt="x")
    handle, _ = await executor.task()
    executor.finish(handle)
    await gateway.until_finished(1)
    assert not drained.done()
    await gateway.close()  # it has learnt
    await asyncio.wait_for(drained, SECONDS)


@pytest.mark.parametrize("say_hello", [False, True], ids=["no hello", "second hello"])
async def test_a_stream_that_breaks_the_contract_ends(rig: Rig, say_hello: bool) -> None:
    gateway = Gateway(rig.server.membership.member.address)
    await gateway.open(say_hello=say_hello)
    if say_hello:
        await gateway.send(hello=jobs_pb2.JobsHello(gateway_id="gw-1"))
    else:
        await gateway.submit(1, prompt="x")
    assert (await gateway.until_broken()).code() == grpc.StatusCode.INVALID_ARGUMENT
    await gateway.close()


async def test_a_handle_used_twice_ends_the_stream(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, prompt="x")
    await gateway.submit(1, prompt="x")
    assert (await gateway.until_broken()).code() == grpc.StatusCode.INVALID_ARGUMENT
