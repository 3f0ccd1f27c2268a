"""Tenants that share full task executors: who is served when, who is turned away and how."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.job_executor_rig import (
    SECONDS,
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    folder,
    gateway,
    job_executor,
    tokenizer,
)
from tests.integration.test_job_executor_embeddings import EmbeddingGateway, send_vector
from tests.servers import until

__all__ = ["executor", "folder", "gateway", "tokenizer"]

ROWS = 4
SPARE = 1  # beyond the rows
LIMITS = {"waiting_tasks_per_tenant_max": 70, "waiting_tasks_max": 75}


@pytest.fixture
async def rig(folder: Path) -> AsyncIterator[Rig]:
    async with job_executor(folder, **LIMITS) as rig:
        rig.sequences = ROWS
        yield rig


def context(tenant: str, **more: Any) -> types.WorkContext:
    return types.WorkContext(tenant=tenant, **more)


async def ask(gateway: Gateway, handles: range, tenant: str, **fields: Any) -> None:
    """One job a handle."""
    for handle in handles:
        more = {"prompt": [1, 2, 3], "id": f"job-{handle}"} | fields
        await gateway.submit(handle, context=context(tenant), **more)


async def until_waiting(rig: Rig, count: int) -> None:
    await until(lambda: rig.server.room.num_waiting == count, what=f"{count} tasks that wait")


class Turns:
    """Ends the tasks of an executor one by one, oldest first, and sees who comes next."""

    def __init__(self, executor: FakeTaskExecutor) -> None:
        self._executor = executor
        self._num_ended = 0

    async def next(self, tokens: int = 2) -> str:
        """Answer the oldest task; the tenant whose task takes the place."""
        num_tasks = len(self._executor.tasks)
        self.end_one(tokens)
        _, task = await self._executor.task(num_tasks + 1)
        return task.context.tenant

    def end_one(self, tokens: int = 2) -> None:
        handle = list(self._executor.tasks)[self._num_ended]
        self._num_ended += 1
        self._executor.emit(handle, [5] * tokens)
        self._executor.finish(handle)

    def end_all(self) -> None:
        """All that run by now."""
        while self._num_ended < len(self._executor.tasks):
            self.end_one()


async def test_a_small_tenant_goes_ahead_of_a_greedy_ones_backlog(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 65), "greedy")
    await until_waiting(rig, 64 - ROWS - SPARE)
    await executor.task(ROWS + SPARE)
    assert len(executor.tasks) == ROWS + SPARE, "the rest waits here, not in the engine"
    await until(lambda: len(gateway.queued) == 64 - ROWS - SPARE, what="who waits is told so")
    await ask(gateway, range(100, 103), "small")
    await until_waiting(rig, 64 - ROWS - SPARE + 3)
    turns = Turns(executor)
    served = [await turns.next(tokens=20) for _ in range(8)]
    assert "small" in served[:2] and served.count("small") == 3
    await gateway.until_admitted(102)
    assert len([handle for handle in gateway.admitted if handle < 65]) < 20


async def test_the_last_rows_are_kept_for_a_tenant_that_was_there_before(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    rig.sequences = 32
    await rig.show(executor)
    await ask(gateway, range(1, 60), "greedy")
    alone = 32 + SPARE
    await until_waiting(rig, 59 - alone)
    await ask(gateway, range(100, 101), "small")
    await until_waiting(rig, 60 - alone)
    await executor.task(alone)
    turns = Turns(executor)
    assert await turns.next() == "small"
    handle, _ = await executor.task(alone + 1)
    executor.finish(handle)
    await gateway.until_finished(100)
    waiting = rig.server.room.num_waiting
    for _ in range(alone - 30):
        turns.end_one()
    await until_waiting(rig, waiting - 1)  # 29 would run, so one more may
    await ask(gateway, range(200, 202), "small")
    await gateway.until_admitted(200)
    await gateway.until_admitted(201)
    assert rig.server.room.num_waiting == waiting - 1, "two rows were left for it"


async def test_prompts_wait_here_until_earlier_ones_are_computed(
    rig: Rig, executor: FakeTaskExecutor, gateway: Gateway
) -> None:
    rig.sequences, rig.step_tokens = 64, 10
    await rig.show(executor)
    await ask(gateway, range(1, 6), "a", prompt=[7] * 20)
    await executor.task(2)
    await until_waiting(rig, 3)  # two may always be there; more only where 3 steps hold them
    started = [tasks_pb2.TaskStarted(handle=handle) for handle in executor.tasks]
    executor.send(tasks_pb2.TaskTokenBatch(started=started))
    await until_waiting(rig, 1)
    third, _ = await executor.task(3)
    executor.finish(third)  # an end without a beginning counts as well
    await until_waiting(rig, 0)


async def test_tasks_wait_here_while_no_memory_is_free_there(
    rig: Rig, executor: FakeTaskExecutor, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.job_executor.links.link.FRESH_SECONDS", SECONDS)
    rig.sequences, rig.block_size = 64, 16
    await rig.show(executor)
    beat = events_pb2.Heartbeat(id=executor.id)
    beat.load.free_blocks, beat.load.total_blocks = 0, 100
    rig.server.links.note_heartbeat(beat)
    await ask(gateway, range(1, 6), "a")
    await until_waiting(rig, 3)
    beat.load.free_blocks = 100
    rig.server.links.note_heartbeat(beat)
    await until_waiting(rig, 0)


async def test_a_weight_is_a_share(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 6), "first")
    await executor.task(ROWS + SPARE)
    await ask(gateway, range(10, 40), "light", tenant_weight=1.0)
    await ask(gateway, range(50, 80), "heavy", tenant_weight=3.0)
    await until_waiting(rig, 60)
    turns = Turns(executor)
    served = [await turns.next() for _ in range(36)]
    assert 25 <= served.count("heavy") <= 29


async def test_priority_counts_within_its_tenant(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 6), "greedy")
    await executor.task(ROWS + SPARE)
    for handle, priority in ((10, 5), (11, -1), (12, 0)):
        urgent = context("shop", priority=priority)
        await gateway.submit(handle, prompt=[1], id=f"job-{handle}", context=urgent)
    await until_waiting(rig, 3)
    turns = Turns(executor)
    for _ in range(3):
        await turns.next()
    last = list(executor.tasks.values())[-3:]
    assert [task.job_id for task in last] == ["job-11", "job-12", "job-10"]


async def test_more_choices_than_rows_begin_with_those_that_have_one(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await gateway.submit(1, prompt=[1, 2], n=8, context=context("a"))
    await gateway.until_admitted(1)
    assert not gateway.queued and rig.server.room.num_waiting == 8 - ROWS - SPARE
    turns = Turns(executor)
    for _ in range(8 - ROWS - SPARE):
        await turns.next()
    turns.end_all()
    for choice in range(8):
        assert (await gateway.until_finished(1, choice)).reason == types.FINISH_REASON_STOP
    assert rig.server.room.num_waiting == 0 and rig.server.streams.num_jobs == 0


async def test_who_leaves_takes_its_tasks_out_of_the_room_at_once(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 10), "greedy")
    await until_waiting(rig, 9 - ROWS - SPARE)
    other = await rig.gateway()
    await ask(other, range(1, 6), "small")
    await until_waiting(rig, 9 - ROWS - SPARE + 5)
    waiting = 9  # the last of the greedy one
    await gateway.send(cancel={"handle": waiting})
    await until_waiting(rig, 9 - ROWS - SPARE + 4)
    assert (await gateway.until_refused(waiting)).code == types.ERROR_CODE_CANCELLED
    await other.close()
    await until_waiting(rig, 3)
    await executor.task(ROWS + SPARE)
    turns = Turns(executor)
    assert [await turns.next() for _ in range(3)] == ["greedy"] * 3
    assert len(executor.tasks) == 8, "nobody runs what nobody waits for"


async def test_a_cancelled_task_makes_room(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 7), "a")
    await until_waiting(rig, 1)
    await gateway.send(cancel={"handle": 1})
    await executor.task(ROWS + SPARE + 1)
    await gateway.until_admitted(6)


async def test_a_full_share_is_429_and_others_still_come_in(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    share = LIMITS["waiting_tasks_per_tenant_max"]
    await ask(gateway, range(1, 1 + ROWS + SPARE), "greedy")
    await executor.task(ROWS + SPARE)
    await ask(gateway, range(100, 100 + share), "greedy")
    await until_waiting(rig, share)
    await ask(gateway, range(300, 301), "greedy")
    error = await gateway.until_refused(300)
    assert (error.code, error.reason) == (types.ERROR_CODE_RATE_LIMITED, "tenant_queue_full")
    assert error.retry_after_seconds >= 1
    left = LIMITS["waiting_tasks_max"] - share
    await ask(gateway, range(400, 400 + left), "small")
    await until_waiting(rig, share + left)
    await ask(gateway, range(500, 501), "late")
    error = await gateway.until_refused(500)
    assert (error.code, error.reason) == (types.ERROR_CODE_UNAVAILABLE, "queue_full")
    assert error.retry_after_seconds >= 1
    assert len(gateway.refused) == 2


async def test_what_waits_too_long_is_refused_and_what_runs_is_not(folder: Path) -> None:
    async with job_executor(folder, waiting_seconds_max=0.2) as rig:
        rig.sequences = 1
        executor = FakeTaskExecutor("te-1")
        await executor.start()
        await rig.show(executor)
        gateway = await rig.gateway()
        await ask(gateway, range(1, 4), "a")
        error = await gateway.until_refused(3)
        assert (error.code, error.reason) == (types.ERROR_CODE_UNAVAILABLE, "queue_timeout")
        for handle in (1, 2):
            await gateway.until_admitted(handle)
        assert gateway.admitted == {1, 2} and gateway.queued == {3}
        assert rig.server.room.num_waiting == 0
        executor.finish(1)
        await gateway.until_finished(1)
        await gateway.close()
        await executor.stop()


async def test_the_heartbeat_counts_jobs_that_wait(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 9), "a")
    await until_waiting(rig, 8 - ROWS - SPARE)
    await until(lambda: len(gateway.admitted) == ROWS + SPARE, what="admissions")
    beat = events_pb2.Heartbeat()
    rig.server._fill_load(beat)
    assert (beat.load.running, beat.load.waiting) == (ROWS + SPARE, 8 - ROWS - SPARE)


async def test_a_story_tells_how_long_a_choice_waited(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    for handle in range(1, 7):
        named = context("a", request_id=f"req-{handle}")
        await gateway.submit(handle, prompt=[1], id=f"job-{handle}", context=named)
    await until_waiting(rig, 1)
    await executor.task(ROWS + SPARE)
    await Turns(executor).next()
    await gateway.until_admitted(6)
    stories = [rig.server.stories.find("a", f"req-{n}", 0.0) for n in (2, 6)]
    direct, waited = [it.choices[0].waited_seconds for it in stories if it is not None]
    assert direct is None and waited is not None and waited > 0
    told = [it.to_proto("je").choices[0] for it in stories if it is not None]
    assert not told[0].HasField("waited_milliseconds") and told[1].waited_milliseconds > 0


async def test_jobs_that_waited_move_on_when_another_task_executor_comes(
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
) -> None:
    await ask(gateway, range(1, 41), "a")
    await until_waiting(rig, 40 - ROWS - SPARE)
    rig.sequences = 20  # of both from now on
    second = FakeTaskExecutor("te-2")
    await second.start()
    await rig.show(executor, second)
    await until(lambda: len(gateway.admitted) == 40, what="all run")
    assert len(second.tasks) >= 19 and len(second.tasks) + len(executor.tasks) == 40
    await second.stop()


async def test_inputs_to_embed_wait_in_the_same_room(rig: Rig, executor: FakeTaskExecutor) -> None:
    facts = rig.deployment.facts
    facts.task, facts.embedding_size = cluster_pb2.MODEL_TASK_EMBED, 3
    await rig.show(executor)
    gateway = EmbeddingGateway(rig.server.membership.member.address)
    await gateway.open()
    await gateway.embed([[1, 2]] * 40, 1, context=context("greedy"))
    await gateway.until_admitted(1)
    await until_waiting(rig, 40 - ROWS - SPARE)
    await gateway.embed([[3]], 2, context=context("small"))
    await until_waiting(rig, 41 - ROWS - SPARE)
    await until(lambda: gateway.queued == {2}, what="who waits is told so")
    ended = 0
    while 2 not in gateway.admitted:
        assert ended <= 2, "at most one goes before"
        num_tasks = len(executor.tasks)
        send_vector(executor, list(executor.tasks)[ended], 1.0, 2.0, 3.0)
        ended += 1
        await executor.task(num_tasks + 1)
        if list(executor.tasks.values())[-1].context.tenant == "small":
            await gateway.until_admitted(2)
    await gateway.close()
    await until_waiting(rig, 0)
    await until(lambda: len(executor.cancelled) == ROWS + SPARE, what="the rest is cancelled")
