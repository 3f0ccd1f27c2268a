"""What may be lost: bounded, evictable, and apart from what must survive. On a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deepflow.errors import InvalidRequest, TooLarge, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import cache_pb2, store_pb2
from deepflow.v1.cache_pb2_grpc import DisposableStoreServiceStub
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.servers import ServerProcess, free_port, redis_server, until

TOKEN = "a token"
SECONDS = 30.0  # of a call that is answered in milliseconds
ROOM = 64 * 1024
VALUE_MAX = 10_000


class Store:
    """A client that reads like the conversation."""

    def __init__(self, address: str) -> None:
        self.peer = Peer(address, TOKEN)
        self.stub = DisposableStoreServiceStub(self.peer.channel)
        self.records = RecordStoreServiceStub(self.peer.channel)

    async def put(self, key: str, value: bytes, ttl: float = 60.0) -> None:
        request = cache_pb2.PutDisposableRequest(key=key, value=value, ttl_seconds=ttl)
        await self.peer.call(self.stub.Put, request, timeout_seconds=SECONDS)

    async def get(self, key: str) -> bytes | None:
        request = cache_pb2.GetDisposableRequest(key=key)
        reply = await self.peer.call(self.stub.Get, request, timeout_seconds=SECONDS)
        return reply.disposable.value if reply.HasField("disposable") else None

    async def list(self, prefix: str, after: str = "") -> tuple[dict[str, bytes], bool]:
        request = cache_pb2.ListDisposablesRequest(prefix=prefix, after=after)
        reply = await self.peer.call(self.stub.List, request, timeout_seconds=SECONDS)
        return {it.key: it.value for it in reply.disposables}, reply.is_truncated

    async def record(self, key: str) -> bytes:
        request = store_pb2.GetRecordRequest(key=key)
        reply = await self.peer.call(self.records.Get, request, timeout_seconds=SECONDS)
        return reply.record.value


async def bytes_used(client: Redis) -> int:
    return int(await client.get("deepflow:disposable:bytes") or 0)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def store(redis: ServerProcess) -> AsyncIterator[Store]:
    server = KvStoreServer(
        KvStoreConfig(
            port=0,
            cluster_token=TOKEN,
            redis_url=redis.url,
            disposable_redis_url=f"redis://{redis.address}/1",
            redis_connect_seconds=SECONDS,
            redis_command_seconds=SECONDS,
            initialise=True,
            nats_url=f"nats://127.0.0.1:{free_port()}",
            cluster_manager_address=f"127.0.0.1:{free_port()}",
            value_bytes_max=VALUE_MAX,
            disposable_bytes_max=ROOM,
            list_bytes_max=25_000,
        )
    )
    await server.start()
    store = Store(f"127.0.0.1:{server.port}")
    yield store
    await store.peer.close()
    await server.stop()


async def test_values_are_put_read_replaced_and_listed(store: Store) -> None:
    assert await store.get("a/1") is None
    await store.put("a/2", b"\x00\xff")
    await store.put("a/1", b"one")
    await store.put("b/1", b"other")
    await store.put("a/1", b"another")
    assert await store.get("a/1") == b"another"
    assert await store.list("a/") == ({"a/1": b"another", "a/2": b"\x00\xff"}, False)
    assert await store.list("a/", after="a/1") == ({"a/2": b"\x00\xff"}, False)
    assert await store.list("nothing/") == ({}, False)


async def test_a_long_list_comes_in_pages(store: Store) -> None:
    values = {f"k/{number}": bytes([number]) * 9_000 for number in range(5)}
    for key, value in values.items():
        await store.put(key, value)
    found, after, pages = dict[str, bytes](), "", 0
    while True:
        page, is_truncated = await store.list("k/", after)
        found |= page
        pages += 1
        if not is_truncated:
            break
        after = max(page)
    assert found == values and pages == 3


async def test_room_is_made_by_what_expires_first(store: Store, redis: ServerProcess) -> None:
    for number in range(20):
        await store.put(f"k/{number:02}", b"x" * 9_000, ttl=100 + number)
    kept, _ = await store.list("k/", after="k/14")
    assert [await store.get(f"k/{number:02}") for number in range(13)] == [None] * 13
    assert list(kept) == ["k/15", "k/16"] and await store.get("k/19") is not None
    async with Redis(host="127.0.0.1", port=redis.port, db=1) as client:
        assert await bytes_used(client) <= ROOM
        assert await client.hlen("deepflow:disposable:sizes") == 7


async def test_what_expired_is_gone_and_its_room_is_free(
    store: Store, redis: ServerProcess
) -> None:
    await store.put("short", b"x" * 9_000, ttl=0.1)

    async def is_gone() -> bool:
        return await store.get("short") is None and await store.list("") == ({}, False)

    await until(is_gone, what="the end of its time")
    await store.put("next", b"y")
    async with Redis(host="127.0.0.1", port=redis.port, db=1) as client:
        assert await bytes_used(client) == len("next") + 1


async def test_flushing_it_touches_no_record_and_it_goes_on(
    store: Store, redis: ServerProcess
) -> None:
    record = store_pb2.PutRecordRequest(key="a", value=b"must survive")
    await store.peer.call(store.records.Put, record, timeout_seconds=SECONDS)
    await store.put("a", b"may be lost")
    async with Redis(host="127.0.0.1", port=redis.port, db=1) as client:
        await client.flushdb()
    assert await store.get("a") is None and await store.record("a") == b"must survive"
    await store.put("a", b"again")
    assert await store.list("") == ({"a": b"again"}, False)


async def test_half_of_its_own_notes_lost_is_no_harm(store: Store, redis: ServerProcess) -> None:
    """Redis evicted, or a person deleted, what keeps the sums: the bound holds again soon."""
    for number in range(6):
        await store.put(f"k/{number}", b"x" * 9_000)
    async with Redis(host="127.0.0.1", port=redis.port, db=1) as client:
        await client.delete("deepflow:disposable:expiry", "deepflow:disposable:sizes")
        for number in range(12):
            await store.put(f"n/{number:02}", b"y" * 9_000)
        assert await store.get("n/11") == b"y" * 9_000
        assert await bytes_used(client) <= ROOM


@pytest.mark.parametrize(
    ("key", "value", "ttl", "param"),
    [
        ("", b"x", 1.0, "key"),
        ("spaces are bad", b"x", 1.0, "key"),
        ("k" * 300, b"x", 1.0, "key"),
        ("k", b"x", 0.0, "ttl_seconds"),
        ("k", b"x", float("nan"), "ttl_seconds"),
        ("k", b"x", 1e9, "ttl_seconds"),
    ],
)
async def test_bad_input_names_its_field(
    store: Store, key: str, value: bytes, ttl: float, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await store.put(key, value, ttl)
    assert refused.value.param == param
    with pytest.raises(TooLarge):
        await store.put("k", b"x" * (VALUE_MAX + 1))
    with pytest.raises(InvalidRequest):
        await store.list("a/", after="b/1")


async def test_without_redis_it_says_so(store: Store, redis: ServerProcess) -> None:
    await redis.kill()
    with pytest.raises(Unavailable):
        await store.put("a", b"x")
