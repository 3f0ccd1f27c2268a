"""/v1/context_caches at a gateway whose job executor follows a script."""

import asyncio
from typing import Any

from deepflow import rpc
from deepflow.errors import NotFound
from deepflow.v1 import contexts_pb2 as contexts
from deepflow.v1 import types_pb2 as types
from deepflow.v1.contexts_pb2_grpc import (
    ContextCacheServiceServicer,
    add_ContextCacheServiceServicer_to_server,
)
from deepflow.v1.jobs_pb2_grpc import add_JobExecutorServiceServicer_to_server
from services.gateway.jobs import cache_salt
from tests.integration.gateway_support import (
    MODEL,
    TOKEN,
    FakeJobExecutor,
    chat,
    client,
    gateway_stand,
)
from tests.servers import until

PATH = "/v1/context_caches"
ID = "ctx-" + "a" * 32
BODY = {
    "model": MODEL,
    "messages": [{"role": "system", "content": "Be brief."}],
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "chat_template_kwargs": {"mood": "calm"},
    "ttl_seconds": 90,
    "pin": True,
    "name": "rules",
}


class Keeper(FakeJobExecutor, ContextCacheServiceServicer):
    def __init__(self) -> None:
        super().__init__()
        self.creations: list[contexts.CreateContextCacheRequest] = []
        self.others: list[Any] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.num_cancelled = 0
        self.state: contexts.ContextState.ValueType = contexts.CONTEXT_STATE_READY

    async def start(self, port: int = 0) -> None:
        self._server = rpc.new_server(TOKEN)
        add_JobExecutorServiceServicer_to_server(self, self._server)
        add_ContextCacheServiceServicer_to_server(self, self._server)
        self.member.address = f"127.0.0.1:{await rpc.listen(self._server, '127.0.0.1', port)}"

    async def CreateContextCache(self, request: Any, context: Any) -> Any:
        self.creations.append(request)
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        usage = types.Usage(prompt_tokens=20, cached_tokens=16)
        return contexts.CreateContextCacheResponse(cache=self._cache, usage=usage)

    async def GetContextCache(self, request: Any, context: Any) -> Any:
        self.others.append(request)
        if request.id != ID:
            raise NotFound("no", reason="context_cache_not_found")
        return contexts.GetContextCacheResponse(cache=self._cache)

    async def ListContextCaches(self, request: Any, context: Any) -> Any:
        self.others.append(request)
        return contexts.ListContextCachesResponse(caches=[self._cache])

    async def DeleteContextCache(self, request: Any, context: Any) -> Any:
        self.others.append(request)
        return contexts.DeleteContextCacheResponse()

    @property
    def _cache(self) -> contexts.ContextCache:
        record = contexts.ContextRecord(
            id=ID, model=MODEL, created_unix_ms=5_999, expires_unix_ms=95_999, num_tokens=20
        )
        return contexts.ContextCache(record=record, state=self.state, kv_bytes=4096)


SHOWN = {
    "id": ID,
    "object": "context_cache",
    "model": MODEL,
    "name": None,
    "created": 5,
    "expires": 95,
    "tokens": 20,
    "bytes": 4096,
    "state": "ready",
    "pinned": False,
}


async def test_what_was_asked_for_arrives_and_what_was_made_is_shown() -> None:
    keeper = Keeper()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        answer = (await http.post(PATH, json=BODY)).json()
        usage = answer.pop("usage")
        assert answer == SHOWN
        assert (usage["prompt_tokens"], usage["total_tokens"]) == (20, 20)
        assert usage["prompt_tokens_details"] == {"cached_tokens": 16}
        (asked,) = keeper.creations
        assert (asked.model, asked.name, asked.ttl_seconds) == (MODEL, "rules", 90)
        assert asked.is_pinned and asked.content.chat.messages[0].content == "Be brief."
        assert asked.content.chat.tools[0].name == "look"
        assert asked.content.chat.template_arguments_json == '{"mood":"calm"}'
        assert asked.context.deadline_unix_ms > 0
        keeper.state = contexts.CONTEXT_STATE_COLD
        assert (await http.get(PATH)).json() == {
            "object": "list",
            "data": [SHOWN | {"state": "cold"}],
        }
        assert (await http.get(f"{PATH}/{ID}")).json()["state"] == "cold"
        gone = await http.get(f"{PATH}/other")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "context_cache_not_found")
        deleted = (await http.delete(f"{PATH}/{ID}")).json()
        assert deleted == {"id": ID, "object": "context_cache", "deleted": True}
        for request in (asked, *keeper.others):
            assert request.context.cache_salt == cache_salt(request.context.tenant)
        assert (await http.put(PATH, json=BODY)).status_code == 405


async def test_a_prompt_is_text_or_token_ids() -> None:
    keeper = Keeper()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        for prompt in ("hello", [1, 2, 3]):
            assert (await http.post(PATH, json={"model": MODEL, "prompt": prompt})).is_success
        text, ids = (it.content.prompt for it in keeper.creations)
        assert text.text == "hello" and list(ids.tokens.ids) == [1, 2, 3]
        assert keeper.creations[0].ttl_seconds == 3600 and not keeper.creations[0].is_pinned
        bad: list[tuple[Any, str]] = [(["a", "b"], "prompt"), ([500], "prompt[0]"), ({}, "prompt")]
        for wrong, param in bad:
            refused = await http.post(PATH, json={"model": MODEL, "prompt": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        both = {"model": MODEL, "prompt": "x", "tools": BODY["tools"]}
        assert (await http.post(PATH, json=both)).json()["error"]["param"] == "tools"
        assert len(keeper.creations) == 2


async def test_a_job_carries_the_context_that_its_request_names() -> None:
    keeper = Keeper()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        body = chat(context_cache_id=ID)
        assert (await http.post("/v1/chat/completions", json=body)).is_success
        assert (await keeper.jobs.get()).job.context_cache_id == ID
        body = {"model": MODEL, "prompt": "x", "context_cache_id": ID}
        assert (await http.post("/v1/completions", json=body)).is_success
        assert (await keeper.jobs.get()).job.context_cache_id == ID


async def test_a_client_that_leaves_takes_its_work_along() -> None:
    keeper = Keeper()
    keeper.is_open.clear()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        call = asyncio.create_task(http.post(PATH, json=BODY))
        await until(lambda: len(keeper.creations) == 1, what="the work begins")
        call.cancel()
        await until(lambda: keeper.num_cancelled == 1, what="it ends")
        await until(lambda: stand.gateway.under_way.count == 0, what="nothing is under way")


async def test_a_job_executor_that_dies_over_it_is_a_503() -> None:
    keeper = Keeper()
    keeper.is_open.clear()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        call = asyncio.create_task(http.post(PATH, json=BODY))
        await until(lambda: len(keeper.creations) == 1, what="the work begins")
        await keeper.die()
        answer = await call
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert answer.json()["error"]["code"] == "job_executor_lost"
        assert "127.0.0.1" not in answer.text


async def test_a_job_executor_that_is_to_go_ends_its_work_first() -> None:
    keeper = Keeper()
    keeper.is_open.clear()
    async with gateway_stand(keeper) as stand, client(stand) as http:
        call = asyncio.create_task(http.post(PATH, json=BODY))
        await until(lambda: len(keeper.creations) == 1, what="the work begins")
        keeper.member.state = types.LIFECYCLE_STATE_DRAINING
        await stand.show(links=0)
        assert keeper.streams_open == 1, "the link stays while its work is under way"
        keeper.is_open.set()
        assert (await call).status_code == 200
        await until(lambda: keeper.streams_open == 0, what="the link goes")
