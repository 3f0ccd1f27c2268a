"""Contexts kept by a real engine, asked for over the task executor's gRPC face."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.errors import InvalidRequest, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import contexts_pb2, types_pb2
from deepflow.v1.contexts_pb2_grpc import ContextKeeperServiceStub
from services.task_executor.server import TaskExecutorServer
from tests.integration.test_task_executor import JobExecutor, folder, server
from tests.servers import until

__all__ = ["folder", "server"]

SALT, OTHER = b"mine", b"yours"
TOKENS = [7, 8, 9, 10] * 25


class Keeper:
    """Whoever asks a task executor to keep contexts."""

    def __init__(self, address: str) -> None:
        self._peer = Peer(address, "token")
        self._stub: Any = ContextKeeperServiceStub(self._peer.channel)

    async def close(self) -> None:
        await self._peer.close()

    async def keep(self, name: str, **fields: Any) -> contexts_pb2.KeepContextResponse:
        usual = {"model": "m", "cache_salt": SALT, "token_ids": TOKENS, "ttl_seconds": 60.0}
        request = contexts_pb2.KeepContextRequest(context_id=name, **{**usual, **fields})
        answer: contexts_pb2.KeepContextResponse = await self._peer.call(
            self._stub.KeepContext, request, timeout_seconds=30
        )
        return answer

    async def drop(self, name: str, salt: bytes = SALT) -> None:
        request = contexts_pb2.DropContextRequest(context_id=name, cache_salt=salt)
        await self._peer.call(self._stub.DropContext, request, timeout_seconds=30)

    async def kept(self, salt: bytes = SALT) -> dict[str, contexts_pb2.KeptContext]:
        request = contexts_pb2.ListKeptContextsRequest(cache_salt=salt)
        answer = await self._peer.call(self._stub.ListKeptContexts, request, timeout_seconds=30)
        return {it.context_id: it for it in answer.contexts}

    async def kept_of_all(self) -> set[tuple[bytes, str]]:
        request = contexts_pb2.ListKeptContextsRequest(every_tenant=True)
        answer = await self._peer.call(self._stub.ListKeptContexts, request, timeout_seconds=30)
        return {(it.cache_salt, it.context_id) for it in answer.contexts}


@pytest.fixture
async def keeper(server: TaskExecutorServer) -> AsyncIterator[Keeper]:
    keeper = Keeper(server.address)
    yield keeper
    await keeper.close()


async def test_what_is_kept_is_found_by_a_task_and_gone_once_dropped(
    server: TaskExecutorServer, keeper: Keeper, folder: Path
) -> None:
    assert await keeper.kept() == {}  # it holds no model yet
    async with JobExecutor(server) as je:
        capabilities = await je.load(folder)
        answer = await keeper.keep("a", is_pinned=True)
        blocks = len(TOKENS) // capabilities.block_size
        assert answer.kept.num_tokens == len(TOKENS) and answer.cached_tokens == 0
        bytes_of_block = capabilities.kv_bytes // capabilities.kv_blocks
        assert answer.kept.kv_bytes == blocks * bytes_of_block
        context = types_pb2.WorkContext(cache_salt=SALT)
        await je.submit(1, [*TOKENS, 3], 4, context=context)
        _, finished = await je.collect({1})
        assert finished[1].usage.cached_tokens == blocks * capabilities.block_size
        again = await keeper.keep("a", is_pinned=True, ttl_seconds=30.0)
        assert again.cached_tokens > 0
        (kept,) = (await keeper.kept()).values()
        assert kept.is_pinned and 0 < kept.seconds_left <= 30
        assert await keeper.kept(OTHER) == {}
        assert await keeper.kept_of_all() == {(SALT, "a")}
        await keeper.drop("a", OTHER)
        assert set(await keeper.kept()) == {"a"}
        for _ in range(2):  # the second finds nothing, which is fine
            await keeper.drop("a")
            assert await keeper.kept() == {}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "other"}, Unavailable),
        ({"ttl_seconds": -1.0}, InvalidRequest),
        ({"token_ids": []}, InvalidRequest),
        ({"token_ids": [10**6]}, InvalidRequest),
        ({"token_ids": [3] * 600}, InvalidRequest),
    ],
)
async def test_what_cannot_be_kept_is_refused_alone(
    server: TaskExecutorServer,
    keeper: Keeper,
    folder: Path,
    fields: dict[str, Any],
    kind: type[Exception],
) -> None:
    async with JobExecutor(server) as je:
        with pytest.raises(Unavailable):
            await keeper.keep("a")
        await je.load(folder)
        with pytest.raises(kind):
            await keeper.keep("a", **fields)
        await keeper.keep("b")
        assert set(await keeper.kept()) == {"b"}


async def test_an_engine_that_dies_takes_its_contexts_along(
    server: TaskExecutorServer, keeper: Keeper, folder: Path
) -> None:
    async with JobExecutor(server) as je:
        await je.load(folder)
        await keeper.keep("a")
        process = server.engine.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)  # or the next engine is there before all have asked
        keeps = [asyncio.create_task(keeper.keep(f"b{i}")) for i in range(8)]
        await until(lambda: server._contexts.num_waiting == 8, what="all have asked")
        process.kill()
        results = await asyncio.gather(*keeps, return_exceptions=True)
        assert all(isinstance(it, Unavailable) for it in results), results
        await until(
            lambda: bool(server.engine.deployment) and server.lifecycle.word == "ready",
            what="the model is loaded again",
        )
        assert await keeper.kept() == {}
        assert (await keeper.keep("a")).cached_tokens == 0
