"""The kv_store over its real wire, on a real Redis."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deepflow.errors import (
    Conflict,
    DeepFlowError,
    InvalidRequest,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from deepflow.rpc import Peer
from deepflow.v1 import store_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.servers import ServerProcess, free_port, redis_server, until

TOKEN = "a token"
PASSWORD = "a password"
SECONDS = 30.0  # of a call that is answered in milliseconds


class Store:
    """A client that reads like the conversation."""

    def __init__(self, address: str, token: str = TOKEN) -> None:
        self.peer = Peer(address, token)
        self.stub = RecordStoreServiceStub(self.peer.channel)

    async def get(self, key: str) -> store_pb2.Record | None:
        request = store_pb2.GetRecordRequest(key=key)
        reply = await self.peer.call(self.stub.Get, request, timeout_seconds=SECONDS)
        return reply.record if reply.HasField("record") else None

    async def put(
        self, key: str, value: bytes, expected: int | None = None, lease: str = "", token: int = 0
    ) -> int:
        request = store_pb2.PutRecordRequest(
            key=key, value=value, expected_version=expected, lease=lease, fencing_token=token
        )
        return (await self.peer.call(self.stub.Put, request, timeout_seconds=SECONDS)).version

    async def delete(self, key: str, lease: str = "", token: int = 0) -> bool:
        request = store_pb2.DeleteRecordRequest(key=key, lease=lease, fencing_token=token)
        return (await self.peer.call(self.stub.Delete, request, timeout_seconds=SECONDS)).existed

    async def list(self, prefix: str) -> store_pb2.ListRecordsResponse:
        request = store_pb2.ListRecordsRequest(prefix=prefix)
        return await self.peer.call(self.stub.List, request, timeout_seconds=SECONDS)

    async def acquire(
        self, holder: str, ttl: float = 30, known: int = 0
    ) -> store_pb2.AcquireLeaseResponse:
        request = store_pb2.AcquireLeaseRequest(
            name="boss", holder=holder, ttl_seconds=ttl, known_token=known
        )
        return await self.peer.call(self.stub.AcquireLease, request, timeout_seconds=SECONDS)

    async def release(self, holder: str, token: int) -> None:
        request = store_pb2.ReleaseLeaseRequest(name="boss", holder=holder, fencing_token=token)
        await self.peer.call(self.stub.ReleaseLease, request, timeout_seconds=SECONDS)


def settings(redis: ServerProcess, *, initialise: bool = True) -> KvStoreConfig:
    return KvStoreConfig(
        port=0,
        cluster_token=TOKEN,
        redis_url=f"redis://{redis.address}/0",
        redis_password=PASSWORD,
        redis_connect_seconds=SECONDS,
        redis_command_seconds=SECONDS,
        initialise=initialise,
        probe_seconds=0.05,
        nats_url=f"nats://127.0.0.1:{free_port()}",
        cluster_manager_address=f"127.0.0.1:{free_port()}",
        value_bytes_max=1000,
        list_bytes_max=5000,
    )


@contextlib.asynccontextmanager
async def serving(config: KvStoreConfig) -> AsyncIterator[tuple[KvStoreServer, Store]]:
    server = KvStoreServer(config)
    store: Store | None = None
    try:
        await server.start()
        store = Store(f"127.0.0.1:{server.port}")
        yield server, store
    finally:
        if store is not None:
            await store.peer.close()
        await server.stop()


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with redis_server(tmp_path, PASSWORD) as server:
        yield server


@pytest.fixture
async def store(redis: ServerProcess) -> AsyncIterator[Store]:
    async with serving(settings(redis)) as (_, client):
        yield client


async def empty(redis: ServerProcess) -> None:
    client = Redis(host="127.0.0.1", port=redis.port, password=PASSWORD)
    await client.flushall()
    await client.aclose()


async def test_a_record_has_versions(store: Store) -> None:
    assert await store.get("a") is None
    assert await store.put("a", b"one", expected=0) == 1
    assert await store.put("a", b"\x00\xfftwo", expected=1) == 2
    assert await store.put("a", b"three") == 3
    record = await store.get("a")
    assert record is not None and (record.value, record.version) == (b"three", 3)


async def test_a_write_on_an_old_version_conflicts_and_its_retry_does_not(store: Store) -> None:
    await store.put("a", b"one", expected=0)
    assert await store.put("a", b"one", expected=0) == 1  # the retry of a write that landed
    with pytest.raises(Conflict):
        await store.put("a", b"other", expected=0)
    await store.put("a", b"two", expected=1)
    with pytest.raises(Conflict):
        await store.put("a", b"one", expected=0)


async def test_one_of_many_concurrent_writers_wins(store: Store) -> None:
    writes = [store.put("a", b"%d" % i, expected=0) for i in range(20)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert outcomes.count(1) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


async def test_list_is_sorted_and_keeps_to_its_prefix(store: Store) -> None:
    for key in ("b/2", "a/1", "b/1", "b", "b/10", "c"):
        await store.put(key, key.encode())
    reply = await store.list("b/")
    assert [(r.key, r.value) for r in reply.records] == [
        ("b/1", b"b/1"),
        ("b/10", b"b/10"),
        ("b/2", b"b/2"),
    ]
    assert reply.generation.startswith("generation-")
    assert len((await store.list("")).records) == 6


async def test_a_deleted_record_is_gone(store: Store) -> None:
    await store.put("a", b"one")
    assert await store.delete("a")
    assert not await store.delete("a")
    assert await store.get("a") is None
    assert not (await store.list("")).records
    assert await store.put("a", b"again", expected=0) == 1


async def test_a_lease_has_one_holder_and_its_token_rises(store: Store) -> None:
    first = await store.acquire("ann")
    assert first.acquired and first.holder == "ann" and 0 < first.remaining_seconds <= 30
    refused = await store.acquire("bob")
    assert not refused.acquired and refused.holder == "ann"
    assert refused.fencing_token == first.fencing_token
    renewed = await store.acquire("ann")
    assert renewed.acquired and renewed.fencing_token == first.fencing_token
    await store.release("bob", first.fencing_token)  # not his: nothing happens
    assert not (await store.acquire("bob")).acquired
    await store.release("ann", first.fencing_token)
    second = await store.acquire("bob")
    assert second.acquired and second.fencing_token > first.fencing_token


async def test_a_token_is_greater_than_any_that_its_holder_knows(store: Store) -> None:
    first = (await store.acquire("ann")).fencing_token
    assert (await store.acquire("ann", known=first)).fencing_token == first
    later = await store.acquire("ann", known=first + 10)
    assert later.acquired and later.fencing_token > first + 11, "it continues nobody's lease"
    assert (await store.acquire("ann", known=first)).fencing_token == later.fencing_token
    held = await store.acquire("bob", known=first + 100)
    assert not held.acquired and held.fencing_token == later.fencing_token
    with pytest.raises(Conflict):
        await store.put("a", b"late", lease="boss", token=first)
    assert await store.put("a", b"now", lease="boss", token=later.fencing_token) == 1


async def test_an_expired_lease_is_free_and_even_its_holder_gets_a_new_token(store: Store) -> None:
    first = await store.acquire("ann", ttl=0.1)

    async def taken() -> bool:
        return (await store.acquire("bob", ttl=0.1)).acquired

    await until(taken, what="the lease to expire")

    async def back() -> bool:
        reply = await store.acquire("ann")
        return reply.acquired and reply.fencing_token == first.fencing_token + 2

    await until(back, what="the lease to come back")


async def test_a_stale_fencing_token_writes_nothing(store: Store) -> None:
    old = (await store.acquire("ann")).fencing_token
    assert await store.put("a", b"ann", lease="boss", token=old) == 1
    await store.release("ann", old)
    new = (await store.acquire("bob")).fencing_token
    with pytest.raises(Conflict) as refusal:
        await store.put("a", b"late", lease="boss", token=old)
    assert refusal.value.reason == "stale_fencing_token"
    with pytest.raises(Conflict):
        await store.delete("a", lease="boss", token=old)
    assert await store.put("a", b"bob", lease="boss", token=new) == 2


async def test_bad_requests_name_their_field(store: Store) -> None:
    async def refused(call: object, param: str, kind: type[DeepFlowError] = InvalidRequest) -> None:
        with pytest.raises(kind) as refusal:
            await call  # type: ignore[misc]
        assert refusal.value.param == param

    await refused(store.get("not a key"), "key")
    await refused(store.put("", b""), "key")
    await refused(store.list("*"), "prefix")
    await refused(store.put("a", b"x" * 1001), "value", TooLarge)
    await refused(store.put("a", b"x", token=1), "lease")
    await refused(store.acquire("ann", ttl=0), "ttl_seconds")
    await refused(store.acquire("ann", ttl=float("nan")), "ttl_seconds")
    await refused(store.acquire("ann", known=1 << 63), "known_token")
    for i in range(6):
        await store.put(f"a{i}", b"x" * 1000)
    await refused(store.list("a"), "prefix", TooLarge)


async def test_nobody_reads_without_the_token(store: Store) -> None:
    stranger = Store(store.peer.address, "another token")
    with pytest.raises(Unauthenticated):
        await stranger.get("a")
    await stranger.peer.close()


async def test_lost_records_are_unavailable_and_never_empty(redis: ServerProcess) -> None:
    async with serving(settings(redis)) as (server, store):
        await store.put("a", b"one")
        await empty(redis)
        for call in (store.get("a"), store.put("a", b""), store.list(""), store.acquire("ann")):
            with pytest.raises(Unavailable, match="generation marker missing"):
                await call
        await until(lambda: not server.lifecycle.is_ready, what="the kv_store to say so")
        assert "generation marker" in server.lifecycle.detail


async def test_an_empty_redis_is_not_taken_for_a_new_one(redis: ServerProcess) -> None:
    async with serving(settings(redis, initialise=False)) as (server, store):
        assert server.lifecycle.state == types.LIFECYCLE_STATE_STARTING
        with pytest.raises(Unavailable):
            await store.list("")


async def test_a_space_with_records_and_no_marker_is_never_initialised(
    redis: ServerProcess,
) -> None:
    client = Redis(host="127.0.0.1", port=redis.port, password=PASSWORD)
    await client.set("deepflow:records:lease-token:boss", 7)
    await client.aclose()
    async with serving(settings(redis)) as (server, store):
        with pytest.raises(Unavailable):
            await store.list("")
        assert "not empty" in server.lifecycle.detail


async def test_records_outlive_a_kill_of_redis_and_of_the_kv_store(redis: ServerProcess) -> None:
    async with serving(settings(redis)) as (server, store):
        await store.put("a", b"one")
        token = (await store.acquire("ann")).fencing_token
        generation = (await store.list("")).generation
        await redis.kill()
        with pytest.raises(Unavailable) as refusal:
            await store.get("a")
        assert refusal.value.retry_after_seconds > 0
        await until(lambda: not server.lifecycle.is_ready, what="the kv_store to notice")
        await redis.start()
        await until(lambda: server.lifecycle.is_ready, what="the kv_store to come back")
        record = await store.get("a")
        assert record is not None and record.value == b"one"
    async with serving(settings(redis, initialise=False)) as (_, store):
        assert (await store.list("")).generation == generation
        assert (await store.acquire("ann")).fencing_token == token


async def test_a_hung_redis_is_given_up_in_bounded_time(redis: ServerProcess) -> None:
    """By the kv_store: who asks it has not lost patience by then."""
    async with serving(settings(redis)) as (_, patient):
        await patient.put("a", b"one")
    config = settings(redis).model_copy(
        update={"redis_connect_seconds": 1.0, "redis_command_seconds": 1.0}
    )
    async with serving(config) as (_, store):
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await store.get("a")
        finally:
            redis.process.send_signal(signal.SIGCONT)

        async def back() -> bool:
            with contextlib.suppress(Unavailable):
                return await store.get("a") is not None
            return False

        await until(back, what="reads to work again")


async def test_a_kv_store_that_starts_first_waits_for_redis(redis: ServerProcess) -> None:
    await redis.kill()
    async with serving(settings(redis)) as (server, store):
        assert server.lifecycle.state == types.LIFECYCLE_STATE_STARTING
        await redis.start()
        await until(lambda: server.lifecycle.is_ready, what="the kv_store to find Redis")
        assert await store.put("a", b"one") == 1


async def test_a_wrong_password_is_said(redis: ServerProcess) -> None:
    config = settings(redis).model_copy(update={"redis_password": "wrong"})
    async with serving(config) as (server, _):
        assert "password" in server.lifecycle.detail
