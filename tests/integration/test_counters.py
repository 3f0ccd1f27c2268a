"""The counters of the kv_store over their real wire, on a real Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deepflow.errors import InvalidRequest, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import CounterServiceStub
from services.kv_store.counters.limits import BATCH_MAX
from tests.integration.test_kv_store import PASSWORD, SECONDS, TOKEN, serving, settings
from tests.servers import ServerProcess, redis_server, until


class Counters:
    """A client that reads like the conversation."""

    def __init__(self, address: str) -> None:
        self.peer = Peer(address, TOKEN)
        self.stub = CounterServiceStub(self.peer.channel)

    async def take(
        self, limit: int, need: int = 0, *, ahead: int = 0, charge: int = 0, name: str = "t"
    ) -> store_pb2.TakeResponse:
        take = store_pb2.Take(name=name, limit=limit, need=need, ahead=ahead, charge=charge)
        return await self.ask(store_pb2.TakeRequest(takes=[take]))

    async def hold(self, holder: str, limit: int, need: int, *, seconds: float = 30) -> int:
        slots = store_pb2.HoldSlots(name="t", limit=limit, need=need)
        request = store_pb2.TakeRequest(holder=holder, lease_seconds=seconds, slots=[slots])
        return (await self.ask(request)).held[0]

    async def ask(self, request: store_pb2.TakeRequest) -> store_pb2.TakeResponse:
        return await self.peer.call(self.stub.Take, request, timeout_seconds=SECONDS)

    async def add(self, batch: int, *rows: store_pb2.KeyUsage, reporter: str = "g") -> None:
        request = store_pb2.AddUsageRequest(reporter=reporter, batch=batch, rows=rows)
        await self.peer.call(self.stub.AddUsage, request, timeout_seconds=SECONDS)

    async def usage(self, **words: str) -> list[store_pb2.KeyUsage]:
        request = store_pb2.ListUsageRequest(**words)
        reply = await self.peer.call(self.stub.ListUsage, request, timeout_seconds=SECONDS)
        return list(reply.rows)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with redis_server(tmp_path, PASSWORD) as server:
        yield server


@pytest.fixture
async def counters(redis: ServerProcess) -> AsyncIterator[Counters]:
    async with serving(settings(redis)) as (server, _):
        client = Counters(f"127.0.0.1:{server.port}")
        yield client
        await client.peer.close()


@contextlib.asynccontextmanager
async def raw(redis: ServerProcess) -> AsyncIterator[Redis]:
    client = Redis(host="127.0.0.1", port=redis.port, password=PASSWORD, decode_responses=True)
    yield client
    await client.aclose()


def row(tokens: int, *, key: str = "key-1", model: str = "org/model:v1") -> store_pb2.KeyUsage:
    return store_pb2.KeyUsage(
        tenant="shop", key_id=key, model=model, requests=1, prompt_tokens=tokens
    )


async def test_many_at_once_get_the_limit_and_no_more(counters: Counters) -> None:
    answers = await asyncio.gather(*(counters.take(50, 3) for _ in range(30)))
    by_window: dict[int, int] = {}
    for answer in answers:
        granted = answer.taken[0].granted
        by_window[answer.window] = by_window.get(answer.window, 0) + granted
        assert 0 < answer.resets_in_seconds <= 60
    assert all(total <= 50 for total in by_window.values())
    assert 50 in by_window.values() or len(by_window) == 2


async def test_what_is_asked_for_later_is_little_of_what_is_left(counters: Counters) -> None:
    answer = await counters.take(1000, 8, ahead=500)
    assert answer.taken[0].granted == 8 + (1000 - 8) // 16
    few = await counters.take(10, 1, ahead=500, name="few")
    assert few.taken[0].granted == 1


async def test_what_was_spent_already_counts_beyond_the_limit(counters: Counters) -> None:
    answer = await counters.take(10, 5, charge=8)
    assert (answer.taken[0].granted, answer.taken[0].remaining) == (2, 0)
    answer = await counters.take(10, 1, charge=100, name="other")
    assert (answer.taken[0].granted, answer.taken[0].remaining) == (0, 0)


async def test_counters_of_limits_expire(counters: Counters, redis: ServerProcess) -> None:
    await counters.take(10, 1)
    await counters.hold("g1", 4, 1)
    async with raw(redis) as client:
        names = [name async for name in client.scan_iter("deepflow:disposable:limits:*")]
        assert len(names) == 2
        for name in names:
            assert 0 < await client.pttl(name) <= 120_000


async def test_places_are_held_and_come_back(counters: Counters) -> None:
    assert await counters.hold("g1", 3, 2) == 2
    assert await counters.hold("g2", 3, 2) == 1
    assert await counters.hold("g1", 3, 0) == 0
    assert await counters.hold("g2", 3, 3) == 3


async def test_places_of_a_silent_holder_are_free_again(counters: Counters) -> None:
    assert await counters.hold("gone", 2, 2, seconds=0.1) == 2

    async def is_free() -> bool:
        return await counters.hold("g2", 2, 2) == 2

    await until(is_free, what="the lease of the silent holder ended")


async def test_usage_is_added_once(counters: Counters) -> None:
    await counters.add(1, row(10), row(1, model="small"))
    await counters.add(1, row(10), row(1, model="small"))
    await counters.add(2, row(5))
    await counters.add(1, row(99))
    await counters.add(1, row(7, key="key-2"), reporter="another")
    found = {(it.key_id, it.model): it for it in await counters.usage()}
    assert found["key-1", "org/model:v1"].prompt_tokens == 15
    assert found["key-1", "org/model:v1"].requests == 2
    assert found["key-1", "small"].prompt_tokens == 1
    assert [it.prompt_tokens for it in await counters.usage(key_id="key-2")] == [7]
    assert await counters.usage(tenant="nobody") == []


async def test_usage_survives_redis(counters: Counters, redis: ServerProcess) -> None:
    await counters.add(1, row(10))
    await redis.kill()
    with pytest.raises(Unavailable):
        await counters.usage()
    await redis.start()
    assert [it.prompt_tokens for it in await counters.usage()] == [10]


async def test_lost_records_are_no_empty_usage(counters: Counters, redis: ServerProcess) -> None:
    await counters.add(1, row(10))
    async with raw(redis) as client:
        await client.flushall()
    for call in (counters.usage(), counters.add(2, row(1))):
        with pytest.raises(Unavailable):
            await call
    assert (await counters.take(10, 1)).taken[0].granted == 1  # limits need no records


async def test_bad_questions_name_the_field(counters: Counters) -> None:
    many = [store_pb2.Take(name="t", limit=1)] * (BATCH_MAX + 1)
    questions = {
        "takes[0].name": counters.take(1, 1, name="white space"),
        "takes[0]": counters.take(2**60, 1),
        "takes": counters.ask(store_pb2.TakeRequest(takes=many)),
        "lease_seconds": counters.hold("g", 1, 1, seconds=0),
        "holder": counters.hold("", 1, 1),
        "batch": counters.add(0, row(1)),
        "rows[0].key_id": counters.add(1, row(1, key="a/b")),
        "rows[0].model": counters.add(1, row(1, model="")),
        "reporter": counters.add(1, row(1), reporter=""),
    }
    for param, question in questions.items():
        with pytest.raises(InvalidRequest) as refusal:
            await question
        assert refusal.value.param == param
