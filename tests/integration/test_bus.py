"""The bus over a real NATS: what is heard, and what is not."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from tests.servers import ServerProcess, nats_server, until

SUBJECT = "deepflow.heartbeat.task_executor"
CONNECTED_ROUNDS = 20


@pytest.fixture
async def server() -> AsyncIterator[ServerProcess]:
    async with nats_server(user="u", password="p") as server:
        yield server


def beat(id: str, kind: types.MemberKind.ValueType) -> bytes:
    member = cluster_pb2.Member(id=id, kind=kind)
    return events_pb2.Heartbeat(id=id, member=member).SerializeToString()


async def test_nobody_is_heard_in_anothers_name(
    server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    async def hear(event: events_pb2.Heartbeat) -> None:
        heard.append(event.id)

    bus = Bus(ServiceConfig(nats_url=server.url, nats_user="u", nats_password="p"), "test")
    await bus.subscribe("deepflow.heartbeat.*.*", events_pb2.Heartbeat, hear)
    bus.start()
    await bus.connected.wait()
    stranger = Client()
    await stranger.connect(server.url, user="u", password="p")

    executor, gateway = types.MEMBER_KIND_TASK_EXECUTOR, types.MEMBER_KIND_GATEWAY
    told = [
        (f"{SUBJECT}.te-0", beat("gateway-0", gateway)),
        (f"{SUBJECT}.gateway-0", beat("gateway-0", gateway)),
        (f"{SUBJECT}.te-0", beat("te-1", executor)),
        (f"{SUBJECT}.te-0", b"\xff"),
    ]

    async def is_heard() -> bool:
        """In order: what came before the honest one was passed over by then."""
        for subject, message in (*told, (f"{SUBJECT}.te-0", beat("te-0", executor))):
            await stranger.publish(subject, message)
        await stranger.flush()
        return bool(heard) and caplog.text.count("speaks for somebody else") >= 3

    await until(is_heard, what="the honest heartbeat, and word of the others")
    assert set(heard) == {"te-0"}
    await stranger.close()
    await bus.close()


async def test_closing_at_any_moment_of_connecting_leaves_nothing(server: ServerProcess) -> None:
    """Each round closes some steps of the event loop later than the one before: one at first."""
    config = ServiceConfig(nats_url=server.url, nats_user="u", nats_password="p")
    steps = rounds = connected = 0
    while connected < CONNECTED_ROUNDS:
        bus = Bus(config, "test")
        bus.start()
        for _ in range(steps):
            await asyncio.sleep(0)
        connected += bus.connected.is_set()
        await bus.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, steps
        rounds, steps = rounds + 1, steps + 1 + steps // 50
    gc.collect()  # a connection left open is a ResourceWarning, hence an error
    assert rounds > 2 * CONNECTED_ROUNDS, "hardly any was closed on its way"
