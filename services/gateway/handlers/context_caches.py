"""/v1/context_caches: what conversations begin with, computed once and kept by name."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from deepflow.background import end
from deepflow.errors import Cancelled, Unavailable
from deepflow.rpc import Peer
from deepflow.telemetry import Tracing
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import contexts_pb2 as contexts
from deepflow.v1 import types_pb2 as types
from deepflow.v1.contexts_pb2_grpc import ContextCacheServiceStub
from services.gateway import metrics
from services.gateway.catalog import RETRY_AFTER_SECONDS, Catalog
from services.gateway.config import GatewayConfig
from services.gateway.doors import Doors
from services.gateway.handlers.under_way import UnderWay
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange
from services.gateway.jobs import work_context
from services.gateway.limits.estimate import prompt_estimate
from services.gateway.links.links import Links
from services.gateway.schema.body import parse_object
from services.gateway.schema.context_caches import ContextCacheCall, read_context_cache

if TYPE_CHECKING:
    from deepflow.v1.contexts_pb2_grpc import ContextCacheServiceAsyncStub

PATH = "/v1/context_caches"
PREFIX = f"{PATH}/"

LOOKED_AT_MAX = 64
LOOK_SECONDS_MAX = 10.0

_STATES = {
    contexts.CONTEXT_STATE_READY: "ready",
    contexts.CONTEXT_STATE_COLD: "cold",
    contexts.CONTEXT_STATE_UNKNOWN: "unknown",
}

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class ContextCaches:
    """Owns nothing: every job executor knows all of a tenant's."""

    def __init__(
        self,
        config: GatewayConfig,
        links: Links,
        catalog: Callable[[], Catalog],
        tracing: Tracing,
        doors: Doors,
        under_way: UnderWay,
    ) -> None:
        self._config = config
        self._links = links
        self._catalog = catalog
        self._tracing = tracing
        self._doors = doors
        self._under_way = under_way
        self._num_looked_at = 0

    async def all(self, exchange: Exchange) -> None:
        """POST makes one; else the caller's own are listed."""
        if exchange.method == "POST":
            await self._create(exchange)
        else:
            await self._list(exchange)

    async def one(self, exchange: Exchange) -> None:
        if exchange.method == "DELETE":
            await self._delete(exchange)
        else:
            await self._show(exchange)

    async def _create(self, exchange: Exchange) -> None:
        with self._under_way.one(exchange.caller.tenant.name):
            call = await self._read(exchange)
            estimate = prompt_estimate(call.work)
            async with self._doors.work(exchange, call.model, estimate) as bill:
                with self._tracing.span(
                    "gateway.request", exchange.trace(), path=exchange.path
                ) as span:
                    made = await self._make(exchange, call, span.context)
                usage = made.usage
                bill.prompt_tokens, bill.cached_tokens = usage.prompt_tokens, usage.cached_tokens
                metrics.count_tokens(call.model, usage.prompt_tokens, usage.cached_tokens, 0)
                exchange.notes["prompt_tokens"] = usage.prompt_tokens
            await exchange.respond_json(document(made.cache) | {"usage": _usage(usage)})

    async def _read(self, exchange: Exchange) -> ContextCacheCall:
        body = await exchange.read_json_bytes(self._config.body_bytes_max)
        document = parse_object(body, self._config.json_depth_max)
        call = read_context_cache(document, self._config.limits)
        exchange.caller.require_model(call.model)
        catalog = self._catalog()
        catalog.require_task(call.model, cluster.MODEL_TASK_GENERATE)
        if vocab_size := catalog.deployment(call.model).facts.vocab_size:
            call.check_ids(vocab_size)
        catalog.require_served(call.model)
        exchange.notes["model"] = call.model
        return call

    async def _make(
        self, exchange: Exchange, call: ContextCacheCall, trace: types.TraceContext
    ) -> contexts.CreateContextCacheResponse:
        request = contexts.CreateContextCacheRequest(
            context=self._context(exchange, self._config.job_seconds_max, trace),
            model=call.model,
            name=call.name,
            content=call.content,
            ttl_seconds=call.ttl_seconds,
            is_pinned=call.pin,
            tenant_weight=exchange.caller.tenant.weight,
        )
        async with self._job_executor() as (peer, stub):
            making = peer.call(
                stub.CreateContextCache, request, timeout_seconds=self._config.job_seconds_max
            )
            return await _while_client_waits(exchange, making)

    async def _list(self, exchange: Exchange) -> None:
        request = contexts.ListContextCachesRequest(context=self._context(exchange))
        with self._place():
            async with self._job_executor() as (peer, stub):
                answer = await peer.call(
                    stub.ListContextCaches, request, timeout_seconds=LOOK_SECONDS_MAX
                )
        await exchange.respond_json({"object": "list", "data": list(map(document, answer.caches))})

    async def _show(self, exchange: Exchange) -> None:
        context_id = name_in(exchange, PREFIX)
        request = contexts.GetContextCacheRequest(context=self._context(exchange), id=context_id)
        with self._place():
            async with self._job_executor() as (peer, stub):
                answer = await peer.call(
                    stub.GetContextCache, request, timeout_seconds=LOOK_SECONDS_MAX
                )
        await exchange.respond_json(document(answer.cache))

    async def _delete(self, exchange: Exchange) -> None:
        context_id = name_in(exchange, PREFIX)
        request = contexts.DeleteContextCacheRequest(context=self._context(exchange), id=context_id)
        with self._place():
            async with self._job_executor() as (peer, stub):
                await peer.call(stub.DeleteContextCache, request, timeout_seconds=LOOK_SECONDS_MAX)
        gone = {"id": context_id, "object": "context_cache", "deleted": True}
        await exchange.respond_json(gone)

    def _context(
        self,
        exchange: Exchange,
        seconds_max: float = LOOK_SECONDS_MAX,
        trace: types.TraceContext | None = None,
    ) -> types.WorkContext:
        tenant = exchange.caller.tenant.name
        return work_context(exchange.request_id, trace, seconds_max, tenant)

    @contextlib.asynccontextmanager
    async def _job_executor(self) -> AsyncIterator[tuple[Peer, "ContextCacheServiceAsyncStub"]]:
        """Any of them. What gRPC says of one that went away names addresses: not for clients."""
        link = await self._links.least_loaded()
        with link.beside() as peer:
            try:
                yield peer, ContextCacheServiceStub(peer.channel)
            except Unavailable as error:
                if error.reason != Unavailable.default_reason:
                    raise
                log.info("a job executor went away: %s", error)
                raise _lost() from error

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A few at a time: each may ask every task executor."""
        if self._num_looked_at >= LOOKED_AT_MAX:
            raise Unavailable(
                "too many context caches are being looked at; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._num_looked_at += 1
        try:
            yield
        finally:
            self._num_looked_at -= 1


def document(cache: contexts.ContextCache) -> dict[str, Any]:
    record = cache.record
    return {
        "id": record.id,
        "object": "context_cache",
        "model": record.model,
        "name": record.name or None,
        "created": record.created_unix_ms // 1000,
        "expires": record.expires_unix_ms // 1000,
        "tokens": record.num_tokens,
        "bytes": cache.kv_bytes,
        "state": _STATES[cache.state],
        "pinned": record.is_pinned,
    }


def _usage(usage: types.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": 0,
        "total_tokens": usage.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def _while_client_waits(exchange: Exchange, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Nothing is made for somebody who has gone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(exchange.disconnection())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client closed the connection")
        if working.cancelled():  # its channel was closed: the job executor is being replaced
            raise _lost()
        return await working
    finally:
        await end(leaving)
        working.cancel()
        await asyncio.wait((working,))


def _lost() -> Unavailable:
    return Unavailable(
        "the job executor went away; try again",
        reason="job_executor_lost",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
