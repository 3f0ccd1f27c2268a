"""What a job executor tells of a request, while it runs and after."""

from typing import Any

import pytest

from deepflow import clock
from deepflow.errors import NotFound
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.story import Stories
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


async def tell(gateway: Gateway, tenant: str, request_id: str = "req-1") -> jobs_pb2.RequestStory:
    request = jobs_pb2.DescribeRequestRequest(request_id=request_id, tenant=tenant)
    answer: jobs_pb2.DescribeRequestResponse = await gateway.call(
        gateway.stub.DescribeRequest, request
    )
    return answer.story


async def test_a_story_grows_with_its_request(
    gateway: Gateway, executor: FakeTaskExecutor, rig: Rig
) -> None:
    await gateway.submit(1, chat="tell me")
    handle, task = await executor.task()
    tenant = task.context.tenant
    await gateway.until_admitted(1)
    begun = await tell(gateway, tenant)
    assert (begun.outcome, begun.kind, begun.model) == ("running", "chat", "demo")
    assert (begun.gateway_id, begun.job_executor_id) == ("gw-1", rig.server.id)
    assert begun.HasField("admitted_milliseconds") and not begun.HasField("total_milliseconds")
    assert not begun.choices[0].HasField("first_token_milliseconds")

    started = tasks_pb2.TaskStarted(
        handle=handle, queued_milliseconds=4.5, prefill_milliseconds=7.5, cached_tokens=3
    )
    executor.send(tasks_pb2.TaskTokenBatch(started=[started]))
    executor.emit(handle, [5, 6, 7])
    executor.finish(handle, cached=3)
    await gateway.until_finished(1)
    told = await tell(gateway, tenant)
    assert (told.outcome, told.prompt_tokens) == ("ok", len(task.prompt_token_ids))
    (choice,) = told.choices
    assert (choice.task_executor_id, choice.placements) == (executor.id, 1)
    assert (choice.queued_milliseconds, choice.prefill_milliseconds) == (4.5, 7.5)
    assert (choice.cached_tokens, choice.completion_tokens) == (3, 3)
    assert choice.finish_reason == types.FINISH_REASON_STOP
    moments = (
        told.admitted_milliseconds,
        choice.first_token_milliseconds,
        choice.finished_milliseconds,
        told.total_milliseconds,
    )
    assert min(moments) >= 0 and choice.first_token_milliseconds <= told.total_milliseconds


async def test_a_refusal_is_told_with_its_error(gateway: Gateway) -> None:
    await gateway.submit(1, chat="x", sampling={"max_tokens": 100_000, "logit_bias": {99_999: 1.0}})
    refused = await gateway.until_refused(1)
    told = await tell(gateway, "")
    assert told.outcome == refused.reason
    assert told.error == refused
    assert not told.HasField("admitted_milliseconds")


async def test_cached_tokens_are_known_of_an_answer_that_a_stop_string_ends(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Any
) -> None:
    await gateway.submit(1, chat="x", sampling={"stop": ["b"]})
    handle, _ = await executor.task()
    started = tasks_pb2.TaskStarted(handle=handle, cached_tokens=2)
    executor.send(tasks_pb2.TaskTokenBatch(started=[started]))
    executor.emit(handle, tokenizer.encode("abc", add_special_tokens=False).ids)
    end = await gateway.until_finished(1)
    assert (end.reason, end.usage.cached_tokens) == (types.FINISH_REASON_STOP, 2)


async def test_another_tenant_and_an_unknown_id_find_nothing(
    gateway: Gateway, executor: FakeTaskExecutor
) -> None:
    await gateway.submit(1, chat="x")
    _, task = await executor.task()
    for tenant, request_id in ((task.context.tenant + "x", "req-1"), (task.context.tenant, "no")):
        with pytest.raises(NotFound) as caught:
            await tell(gateway, tenant, request_id)
        assert caught.value.reason == "request_not_found"


def job(name: str, tenant: str = "t") -> jobs_pb2.Job:
    made = jobs_pb2.Job(id=f"job-{name}", model="demo")
    made.context.request_id, made.context.tenant = name, tenant
    made.chat.messages.add(role="user", content="secret")
    return made


def test_stories_are_bounded_in_number_and_time() -> None:
    stories = Stories(stories_max=3, ttl_seconds=10)
    for name in "abcd":
        stories.begin(job(name), "chat", "gw").ended("ok")
    running = stories.begin(job("e"), "chat", "gw")
    assert len(stories) == 3
    now = clock.monotonic()
    assert stories.find("t", "a", now) is None
    assert stories.find("t", "d", now) is not None
    assert stories.find("t", "d", now + 11) is None
    stories.expire(now + 11)
    assert len(stories) == 1 and stories.find("t", "e", now + 11) is running


def test_a_story_keeps_no_content() -> None:
    stories = Stories(stories_max=3, ttl_seconds=10)
    story = stories.begin(job("a"), "chat", "gw")
    assert b"secret" not in story.job.SerializeToString()


def test_an_id_that_is_used_again_tells_of_the_newest() -> None:
    stories = Stories(stories_max=3, ttl_seconds=10)
    stories.begin(job("a"), "chat", "gw").ended("ok")
    newest = stories.begin(job("a"), "chat", "gw")
    assert len(stories) == 1
    assert stories.find("t", "a", clock.monotonic()) is newest
