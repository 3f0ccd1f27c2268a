"""Which task executors get work: loads from real NATS heartbeats, members from the view."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.bus import Bus
from deepflow.v1 import events_pb2
from services.job_executor.links import links
from tests.integration.job_executor_rig import (
    SECONDS,
    FakeTaskExecutor,
    Rig,
    folder,
    job_executor,
    rig,
    tokenizer,
)
from tests.servers import nats_server, until

__all__ = ["folder", "rig", "tokenizer"]


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeTaskExecutor, FakeTaskExecutor]]:
    executors = (FakeTaskExecutor("te-1"), FakeTaskExecutor("te-2"))
    for one in executors:
        await one.start()
    yield executors
    for one in executors:
        await one.stop()


async def test_load_of_others_is_learnt_from_heartbeats(
    folder: Path, pair: tuple[FakeTaskExecutor, FakeTaskExecutor]
) -> None:
    async with nats_server() as nats, job_executor(folder, nats_url=nats.url) as rig:
        await rig.show(*pair)
        bus = Bus(rig.server.config, "test")
        bus.start()
        beat = events_pb2.Heartbeat(id="te-1", load=events_pb2.Load(waiting=3, running=4))

        async def is_known() -> bool:
            await bus.publish("deepflow.heartbeat.task_executor.te-1", beat)
            return rig.server.links.get("te-1").reported == 7

        await until(is_known, what="the heartbeat")
        gateway = await rig.gateway()
        for handle in range(1, 5):
            await gateway.submit(handle, prompt="x")
            await gateway.until_admitted(handle)
        assert (len(pair[0].tasks), len(pair[1].tasks)) == (0, 4)
        await gateway.close()
        await bus.close()


async def test_own_tasks_are_spread_without_any_heartbeat(
    rig: Rig, pair: tuple[FakeTaskExecutor, FakeTaskExecutor]
) -> None:
    await rig.show(*pair)
    gateway = await rig.gateway()
    await gateway.submit(1, prompt="x", n=6)
    await gateway.until_admitted(1)
    assert (len(pair[0].tasks), len(pair[1].tasks)) == (3, 3)
    await gateway.close()


async def test_a_task_executor_that_left_the_view_ends_its_tasks_and_gets_no_more(
    rig: Rig, pair: tuple[FakeTaskExecutor, FakeTaskExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SETTLE_SECONDS_MAX", SECONDS)
    first, second = pair
    await rig.show(first)
    gateway = await rig.gateway()
    await gateway.submit(1, prompt="x")
    handle, _ = await first.task()
    await rig.show(second)
    await gateway.submit(2, prompt="x")
    await second.task()
    first.emit(handle, [7])
    first.finish(handle)
    end = await gateway.until_finished(1)
    assert (end.usage.completion_tokens, len(first.tasks)) == (1, 1)
    await gateway.close()


async def test_a_task_executor_that_was_killed_is_found_again_at_its_address(rig: Rig) -> None:
    first = FakeTaskExecutor("te-1")
    await first.start()
    await rig.show(first)
    gateway = await rig.gateway()
    await gateway.submit(1, prompt="x")
    await gateway.until_admitted(1)
    await first.stop()
    end = await gateway.until_finished(1)
    assert end.error.reason == "task_executor_lost"
    await gateway.submit(2, prompt="x")
    assert (await gateway.until_refused(2)).reason == "no_task_executor"
    again = FakeTaskExecutor("te-1")
    await again.start(int(first.address.rpartition(":")[2]))
    await until(lambda: rig.num_live == 1, what="the link is back")
    await gateway.submit(3, prompt="x")
    await gateway.until_admitted(3)
    await gateway.close()
    await again.stop()


async def test_the_first_request_after_a_view_waits_for_the_link(
    rig: Rig, pair: tuple[FakeTaskExecutor, FakeTaskExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "SETTLE_SECONDS_MAX", SECONDS)
    gateway = await rig.gateway()
    await gateway.submit(1, prompt="x")
    assert (await gateway.until_refused(1)).reason == "cluster_unknown"
    rig.push(*pair)
    await gateway.submit(2, prompt="x")
    await gateway.until_admitted(2)
    await gateway.close()
