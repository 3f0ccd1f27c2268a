"""A task executor's KV index over its real wire: whole, and for few at a time."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deepflow import rpc
from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from deepflow.errors import RateLimited, Unauthenticated
from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import KvIndexServiceStub, add_KvIndexServiceServicer_to_server
from services.job_executor.prompt_tree.index_reader import read_index
from services.task_executor.flowserve.messages import KvChange
from services.task_executor.shell.kv_events import KvEventPublisher
from services.task_executor.shell.kv_service import (
    CHUNK_BLOCKS_MAX,
    READINGS_MAX,
    KvIndexService,
)
from tests.servers import until

TOKEN = "a token"


@pytest.fixture
def events() -> KvEventPublisher:
    return KvEventPublisher(Bus(ServiceConfig(), "te"), "te", 7)


@pytest.fixture
async def address(events: KvEventPublisher) -> AsyncIterator[str]:
    server = rpc.new_server(TOKEN)
    add_KvIndexServiceServicer_to_server(KvIndexService(events), server)
    yield f"127.0.0.1:{await rpc.listen(server, '127.0.0.1', 0)}"
    await server.stop(0)


def hold(events: KvEventPublisher, num_blocks: int) -> set[bytes]:
    run = [number.to_bytes(16, "big") for number in range(num_blocks)]
    events.add([KvChange(True, b"", run)])
    return set(run)


async def test_an_index_of_several_chunks_arrives_whole(
    events: KvEventPublisher, address: str
) -> None:
    assert (await read_index(address, TOKEN)).blocks == set()
    blocks = hold(events, CHUNK_BLOCKS_MAX * 2 + 5)
    index = await read_index(address, TOKEN)
    assert (index.incarnation, index.seq, index.blocks) == (7, 1, blocks)


async def test_without_the_token_nothing_is_told(address: str) -> None:
    with pytest.raises(Unauthenticated):
        await read_index(address, "another")


async def test_one_reader_too_many_is_asked_to_come_again(
    events: KvEventPublisher, address: str
) -> None:
    """Slow readers hold their places, as flow control holds them back; who leaves makes room."""
    blocks = hold(events, CHUNK_BLOCKS_MAX * 40)
    peer = rpc.Peer(address, TOKEN)
    stub = KvIndexServiceStub(peer.channel)
    slow: list[Any] = []
    for _ in range(READINGS_MAX):
        call: Any = stub.ReadKvIndex(cache_pb2.ReadKvIndexRequest(), metadata=peer.metadata)
        assert (await call.read()).count == 40
        slow.append(call)
    with pytest.raises(RateLimited) as refused:
        await read_index(address, TOKEN)
    assert refused.value.reason == "kv_index_busy"
    slow[0].cancel()

    async def has_room() -> bool:
        with contextlib.suppress(RateLimited):
            return (await read_index(address, TOKEN)).blocks == blocks
        return False

    await until(has_room, what="a place for one more reader")
    for call in slow:
        call.cancel()
    await peer.close()
