"""Explicit contexts in a real job executor, over a real kv_store; the task executors' answers are
scripted, so that they can refuse, forget and stand still."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow import clock, rpc
from deepflow.errors import DeepFlowError, InvalidRequest, NotFound, RateLimited, Unavailable
from deepflow.v1 import contexts_pb2, jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.contexts_pb2_grpc import (
    ContextCacheServiceStub,
    ContextKeeperServiceServicer,
    add_ContextKeeperServiceServicer_to_server,
)
from deepflow.v1.tasks_pb2_grpc import add_TaskExecutorServiceServicer_to_server
from services.job_executor.contexts import rules
from services.job_executor.contexts.keepers import Keepers
from services.job_executor.contexts.orphans import Orphans
from services.job_executor.contexts.records import ContextRecords
from services.job_executor.contexts.sweeper import Sweeper
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.integration.job_executor_rig import (
    NOWHERE,
    SECONDS,
    TOKEN,
    FakeTaskExecutor,
    Gateway,
    Rig,
    folder,
    job_executor,
    tokenizer,
)
from tests.servers import ServerProcess, redis_server, until

__all__ = ["folder", "tokenizer"]

CALL_SECONDS = 10.0  # two tests kill Redis, and wait for it to be given up


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that met a stall is asked again after minutes only."""
    monkeypatch.setattr("services.job_executor.contexts.keepers.ASK_SECONDS", SECONDS)
    monkeypatch.setattr("services.job_executor.contexts.records.CALL_SECONDS", CALL_SECONDS)


SALT = b"whose it is"
BLOCK = 4
TEXT = "What is a task executor? It holds a model."


class Keeper(FakeTaskExecutor, ContextKeeperServiceServicer):
    """Keeps what it is told to, unless it is told to refuse, or to wait for `is_open`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.keeps: list[contexts_pb2.KeepContextRequest] = []
        self.kept: dict[str, contexts_pb2.KeptContext] = {}
        self.drops: list[str] = []
        self.keep_refusal: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.num_cancelled = 0

    async def start(self, port: int = 0) -> None:
        self._server = rpc.new_server(TOKEN)
        add_TaskExecutorServiceServicer_to_server(self, self._server)
        add_ContextKeeperServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{await rpc.listen(self._server, '127.0.0.1', port)}"

    async def KeepContext(self, request: Any, context: Any) -> Any:
        self.keeps.append(request)
        if self.keep_refusal is not None:
            raise self.keep_refusal
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        kept = contexts_pb2.KeptContext(
            context_id=request.context_id,
            cache_salt=request.cache_salt,
            num_tokens=len(request.token_ids),
            kv_bytes=1024,
        )
        self.kept[request.context_id] = kept
        return contexts_pb2.KeepContextResponse(kept=kept, cached_tokens=2)

    async def DropContext(self, request: Any, context: Any) -> Any:
        self.drops.append(request.context_id)
        self.kept.pop(request.context_id, None)
        return contexts_pb2.DropContextResponse()

    async def ListKeptContexts(self, request: Any, context: Any) -> Any:
        return contexts_pb2.ListKeptContextsResponse(contexts=self.kept.values())


class Town:
    """A kv_store, a job executor and two task executors."""

    def __init__(
        self, store: KvStoreServer, rig: Rig, keepers: list[Keeper], gateway: Gateway
    ) -> None:
        self.rig, self.keepers, self.gateway = rig, keepers, gateway
        self._store_peer = rpc.Peer(f"127.0.0.1:{store.port}", TOKEN)
        self.records = ContextRecords(self._store_peer)
        self._peer = rpc.Peer(rig.server.membership.member.address, TOKEN)
        self.stub: Any = ContextCacheServiceStub(self._peer.channel)
        self._handle = 0

    async def close(self) -> None:
        await self._peer.close()
        await self._store_peer.close()

    async def call(self, method: Any, request: Any) -> Any:
        return await self._peer.call(method, request, timeout_seconds=SECONDS)

    async def make(self, **fields: Any) -> contexts_pb2.CreateContextCacheResponse:
        answer: contexts_pb2.CreateContextCacheResponse = await self.call(
            self.stub.CreateContextCache, making(**fields)
        )
        return answer

    async def use(self, context_id: str, cached: int, **fields: Any) -> list[int]:
        """One whole answer, of whose prompt so much was found; answers the prompt's tokens."""
        self._handle += 1
        before = {id(keeper): len(keeper.tasks) for keeper in self.keepers}
        await self.gateway.submit(
            self._handle, chat="and?", context_cache_id=context_id, context=whose(), **fields
        )
        await until(
            lambda: any(len(it.tasks) > before[id(it)] for it in self.keepers), what="the task"
        )
        keeper = next(it for it in self.keepers if len(it.tasks) > before[id(it)])
        handle, task = list(keeper.tasks.items())[-1]
        if task.sampling.HasField("prompt_logprobs"):
            keeper.send(tasks_pb2.TaskTokenBatch(prompt_logprobs=[scores(handle, task)]))
        keeper.emit(handle, [5])
        keeper.finish(handle, cached=cached)
        end = await self.gateway.until_finished(self._handle)
        assert not end.HasField("error")
        return list(task.prompt_token_ids)

    async def refusal(self, context_id: str, **fields: Any) -> types.Error:
        self._handle += 1
        fields = {"chat": "and?", "context": whose(), **fields}
        await self.gateway.submit(self._handle, context_cache_id=context_id, **fields)
        return await self.gateway.until_refused(self._handle)

    @property
    def keeps(self) -> list[contexts_pb2.KeepContextRequest]:
        return [it for keeper in self.keepers for it in keeper.keeps]


def whose(salt: bytes = SALT) -> types.WorkContext:
    return types.WorkContext(tenant="t", cache_salt=salt, request_id="req-1")


def scores(handle: int, task: tasks_pb2.Task) -> tasks_pb2.PromptLogprobs:
    """Of all tokens but the first."""
    count = len(task.prompt_token_ids) - 1
    return tasks_pb2.PromptLogprobs(
        handle=handle, first_position=1, logprobs=[-1.0] * count, ranks=[1] * count
    )


def making(**fields: Any) -> contexts_pb2.CreateContextCacheRequest:
    content = contexts_pb2.ContextContent()
    content.chat.messages.add(role="user", content=TEXT)
    usual = {"context": whose(), "model": "demo", "content": content, "ttl_seconds": 60.0}
    return contexts_pb2.CreateContextCacheRequest(**{**usual, **fields})


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    async with redis_server(tmp_path) as redis:
        yield redis


@pytest.fixture
async def store(redis: ServerProcess) -> AsyncIterator[KvStoreServer]:
    server = KvStoreServer(
        KvStoreConfig(
            port=0,
            cluster_token=TOKEN,
            redis_url=redis.url,
            redis_connect_seconds=SECONDS,
            redis_command_seconds=SECONDS,
            initialise=True,
            nats_url=f"nats://{NOWHERE}",
            cluster_manager_address=NOWHERE,
        )
    )
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def town(store: KvStoreServer, folder: Path) -> AsyncIterator[Town]:
    keepers = [Keeper("te-1"), Keeper("te-2")]
    async with job_executor(folder, kv_store_address=f"127.0.0.1:{store.port}") as rig:
        rig.block_size = BLOCK
        for keeper in keepers:
            await keeper.start()
        await rig.show(*keepers)
        gateway = await rig.gateway()
        town = Town(store, rig, keepers, gateway)
        yield town
        await town.close()
        await gateway.close()
    for keeper in keepers:
        await keeper.stop()


def hit(prompt: list[int], kept: int) -> int:
    return min(kept, len(prompt) - 1) // BLOCK * BLOCK


async def test_what_was_kept_is_where_every_prompt_begins(town: Town, tokenizer: Tokenizer) -> None:
    made = await town.make(name="rules", is_pinned=True)
    (keep,) = town.keeps
    assert (keep.cache_salt, keep.is_pinned, keep.model) == (SALT, True, "demo")
    assert 30 < keep.ttl_seconds <= 60
    record = made.cache.record
    assert (record.num_tokens, made.usage.prompt_tokens) == (len(keep.token_ids),) * 2
    assert (made.usage.cached_tokens, made.cache.kv_bytes) == (2, 1024)
    prompt = await town.use(record.id, cached=hit([0] * 999, record.num_tokens))
    text = tokenizer.decode(prompt, skip_special_tokens=False)
    assert text == f"<bos><turn>user\n{TEXT}\n<turn>user\nand?\n<turn>assistant\n"
    assert prompt[: record.num_tokens] == list(keep.token_ids)
    assert town.keeps == [keep], "it was found: nothing has to be kept anew"


async def test_what_was_lost_is_kept_anew_where_it_was_used(town: Town) -> None:
    made = await town.make()
    await town.use(made.cache.record.id, cached=0)
    await until(lambda: len(town.keeps) == 2, what="it is kept anew")
    first, again = town.keeps
    assert list(again.token_ids) == list(first.token_ids)
    assert 0 < again.ttl_seconds <= first.ttl_seconds <= 60


async def test_one_whose_prompt_has_to_be_computed_is_not_kept_anew(town: Town) -> None:
    """Its log probabilities were asked for: that nothing was found says nothing of what is kept."""
    first = (await town.make()).cache.record
    await town.use(first.id, cached=0, sampling=types.SamplingParams(prompt_logprobs=0))
    second = (await town.make()).cache.record  # a longer way than that of a renewal
    assert [it.context_id for it in town.keeps] == [first.id, second.id]


async def test_a_deleted_context_does_not_come_back(town: Town) -> None:
    record = (await town.make()).cache.record
    for keeper in town.keepers:
        keeper.is_open.clear()
    await town.use(record.id, cached=0)
    await until(lambda: len(town.keeps) == 2, what="it is being kept anew")
    request = contexts_pb2.DeleteContextCacheRequest(context=whose(), id=record.id)
    await town.call(town.stub.DeleteContextCache, request)
    for keeper in town.keepers:
        keeper.is_open.set()
    await until(lambda: all(len(it.drops) == 2 for it in town.keepers), what="it is dropped again")
    assert not any(keeper.kept for keeper in town.keepers)
    refused = await town.refusal(record.id)
    assert refused.code == types.ERROR_CODE_NOT_FOUND
    with pytest.raises(NotFound):
        await town.call(town.stub.DeleteContextCache, request)


async def test_one_that_was_away_when_a_context_was_deleted_learns_of_it(town: Town) -> None:
    """And keeps what is still wanted, whosever it is."""
    gone = (await town.make()).cache.record
    kept = [(await town.make(context=whose(salt))).cache.record for salt in (SALT, b"other")]
    away = [keeper for keeper in town.keepers if gone.id in keeper.kept]
    for keeper in town.keepers:
        await keeper.stop()
    await until(lambda: town.rig.num_live == 0, what="nobody to be there")
    request = contexts_pb2.DeleteContextCacheRequest(context=whose(), id=gone.id)
    await town.call(town.stub.DeleteContextCache, request)
    assert not any(keeper.drops for keeper in town.keepers) and away
    for keeper in town.keepers:
        await keeper.start(int(keeper.address.rpartition(":")[2]))
    await until(lambda: all(gone.id in it.drops for it in away), what="it to be dropped")
    left = {context_id for keeper in town.keepers for context_id in keeper.kept}
    assert left == {record.id for record in kept}


async def test_without_records_to_compare_with_nothing_is_dropped(
    town: Town, redis: ServerProcess
) -> None:
    record = (await town.make()).cache.record
    keepers = Keepers(town.rig.server.links)
    await redis.kill()
    with pytest.raises(DeepFlowError):
        await Orphans(town.records, keepers).drop()
    assert any(record.id in keeper.kept for keeper in town.keepers)
    assert not any(keeper.drops for keeper in town.keepers)


async def test_another_task_executor_keeps_what_one_cannot(town: Town) -> None:
    town.keepers[0].keep_refusal = Unavailable("no room", reason="context_cache_full")
    for _ in range(3):
        await town.make()
    assert len(town.keepers[1].kept) == 3
    town.keepers[1].keep_refusal = Unavailable("no room", reason="context_cache_full")
    with pytest.raises(Unavailable) as caught:
        await town.make()
    assert caught.value.reason == "context_cache_full"
    assert len(await town.records.list_of(SALT)) == 3, "nothing is left of the fourth"


async def test_another_task_executor_takes_over_from_one_that_goes(town: Town) -> None:
    for keeper in town.keepers:
        keeper.is_open.clear()
    call = asyncio.create_task(town.make())
    await until(lambda: len(town.keeps) == 1, what="it is being computed")
    gone, other = sorted(town.keepers, key=lambda it: not it.keeps)
    other.is_open.set()
    town.rig.push(other)
    made = await call
    assert set(other.kept) == {made.cache.record.id} and not gone.kept


async def test_a_job_executor_that_is_to_go_ends_its_work_first(town: Town) -> None:
    for keeper in town.keepers:
        keeper.is_open.clear()
    call = asyncio.create_task(town.make())
    await until(lambda: len(town.keeps) == 1, what="it is being computed")
    await town.gateway.close()
    draining = asyncio.create_task(town.rig.server.drain())
    for keeper in town.keepers:
        keeper.is_open.set()
    await draining
    assert (await call).cache.record.is_complete


async def test_nothing_is_left_of_one_whose_maker_went_away(town: Town) -> None:
    for keeper in town.keepers:
        keeper.is_open.clear()
    call = asyncio.create_task(town.make())
    await until(lambda: len(town.keeps) == 1, what="it is being computed")
    (record,) = await town.records.list_of(SALT)
    assert not record.is_complete
    assert (await town.refusal(record.id)).reason == "context_cache_not_found"
    call.cancel()
    await until(lambda: sum(it.num_cancelled for it in town.keepers) == 1, what="it is given up")
    await until(lambda: all(it.drops for it in town.keepers), what="it is dropped")
    assert await town.records.list_of(SALT) == []
    assert await town.records.get_content(SALT, record.id) is None


async def test_without_the_store_known_ones_go_on_and_others_are_not_called_missing(
    town: Town, redis: ServerProcess
) -> None:
    known, unknown = [(await town.make()).cache.record.id for _ in range(2)]
    await town.use(known, cached=999)
    await redis.kill()
    await town.use(known, cached=999)
    refused = await town.refusal(unknown)
    assert (refused.code, refused.reason, refused.param) == (
        types.ERROR_CODE_UNAVAILABLE,
        "context_store_unavailable",
        "context_cache_id",
    )
    with pytest.raises(Unavailable) as caught:
        request = contexts_pb2.ListContextCachesRequest(context=whose())
        await town.call(town.stub.ListContextCaches, request)
    assert caught.value.reason == "context_store_unavailable"
    assert caught.value.retry_after_seconds
    assert "127.0.0.1" not in f"{caught.value} {refused.message}"


async def test_a_context_is_its_tenants_and_its_models_alone(town: Town) -> None:
    record = (await town.make()).cache.record
    refused = await town.refusal(record.id, context=whose(b"somebody else"))
    assert refused.code == types.ERROR_CODE_NOT_FOUND
    for bad in ("x", "ctx-" + "0" * 32, "../" + record.id):
        assert (await town.refusal(bad)).reason == "context_cache_not_found"
    other = contexts_pb2.ContextRecord()
    other.CopyFrom(record)
    other.model = "other"
    await town.records.put(SALT, other)
    refused = await town.refusal(record.id)
    assert (refused.reason, refused.param) == ("context_cache_mismatch", "context_cache_id")


async def test_the_limit_counts_what_lives(town: Town) -> None:
    """What is over goes when its tenant makes another, and by the sweeper."""
    now = clock.unix_ms()
    for number in range(rules.PER_TENANT_MAX):
        expires = now + (60_000 if number else -1)
        record = contexts_pb2.ContextRecord(
            id=f"ctx-{number}", created_unix_ms=1, expires_unix_ms=expires, is_complete=True
        )
        await town.records.put(SALT, record)
    await town.make()
    assert await town.records.get(SALT, "ctx-0") is None
    with pytest.raises(RateLimited) as caught:
        await town.make()
    assert caught.value.reason == "too_many_context_caches"
    assert len(await town.records.list_of(SALT)) == rules.PER_TENANT_MAX


async def test_the_sweeper_takes_what_is_over_of_every_tenant(town: Town) -> None:
    content = contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text="x"))
    for salt in (SALT, b"other", b""):
        for name, expires in (("ctx-old", 1), ("ctx-new", clock.unix_ms() + 60_000)):
            record = contexts_pb2.ContextRecord(id=name, expires_unix_ms=expires, is_complete=True)
            await town.records.put(salt, record)
            await town.records.put_content(salt, name, content)
    assert await Sweeper(town.records).sweep() == 3
    assert await Sweeper(town.records).sweep() == 0
    for salt in (SALT, b"other", b""):
        assert [it.id for it in await town.records.list_of(salt)] == ["ctx-new"]
        assert await town.records.get_content(salt, "ctx-old") is None
        assert await town.records.get_content(salt, "ctx-new") == content


async def test_a_bad_request_leaves_nothing(town: Town) -> None:
    long = contexts_pb2.ContextContent(prompt=jobs_pb2.Prompt(text="word " * 5000))
    for fields in ({"ttl_seconds": 0.0}, {"content": long}, {"name": "x" * 200}):
        with pytest.raises(InvalidRequest) as caught:
            await town.make(**fields)
        assert caught.value.param
    assert not town.keeps and await town.records.list_of(SALT) == []
