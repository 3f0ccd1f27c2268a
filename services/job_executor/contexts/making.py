"""A context's making: rendered, given a place among the tenant's, computed in its turn, kept."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from deepflow import clock
from deepflow.errors import DeepFlowError, RateLimited, Unavailable
from deepflow.v1 import contexts_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.contexts import prefix, rules
from services.job_executor.contexts.keepers import Keepers
from services.job_executor.contexts.probing import kept_tokens
from services.job_executor.contexts.recall import keep_request
from services.job_executor.contexts.records import ContextRecords
from services.job_executor.jobs.parts import Parts
from services.job_executor.scheduling.policy import RequestFeatures
from services.job_executor.scheduling.ticket import Ticket, rank_of, weight_of

log = logging.getLogger(__name__)

MAKINGS_MAX, MAKINGS_PER_TENANT_MAX = 32, 4
RETRY_SECONDS = 1.0
# Where the request brings no deadline.
COMPUTE_SECONDS_MAX = 600.0


class ContextMaker:
    def __init__(self, parts: Parts, records: ContextRecords, keepers: Keepers) -> None:
        self._parts = parts
        self._records = records
        self._keepers = keepers
        self._running: Counter[str] = Counter()  # by tenant
        self._idle = asyncio.Event()
        self._idle.set()
        self._undoings: set[asyncio.Task[None]] = set()

    async def make(
        self, request: contexts_pb2.CreateContextCacheRequest
    ) -> contexts_pb2.CreateContextCacheResponse:
        """All of it, or nothing is left."""
        rules.check_request(request)
        with self._place(request.context.tenant):
            parts, salt = self._parts, request.context.cache_salt
            model = await parts.library.get(request.model)
            await parts.links.settle(model.name)
            parts.links.group_view(model.name)
            limit = parts.tokens_max(model)
            tokens = await kept_tokens(request.content, model, parts.pool, limit)
            record = _new_record(request, tokens)
            async with self._reserved(salt, record, request.content):
                answer = await self._compute(request, record, tokens)
                record.is_complete = True
                await self._records.put(salt, record)
            return _response(record, answer)

    async def drain(self) -> None:
        """Until those that are being made are."""
        await self._idle.wait()

    async def close(self) -> None:
        """What was given up is taken back first."""
        await asyncio.gather(*self._undoings)

    @contextlib.contextmanager
    def _place(self, tenant: str) -> Iterator[None]:
        is_full = self._running.total() >= MAKINGS_MAX
        if is_full or self._running[tenant] >= MAKINGS_PER_TENANT_MAX:
            raise RateLimited(
                "too many context caches are being made; try again in a moment",
                reason="too_many_context_caches",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._running[tenant] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running[tenant] -= 1
            if not self._running[tenant]:
                del self._running[tenant]
            if not self._running:
                self._idle.set()

    @contextlib.asynccontextmanager
    async def _reserved(
        self,
        cache_salt: bytes,
        record: contexts_pb2.ContextRecord,
        content: contexts_pb2.ContextContent,
    ) -> AsyncIterator[None]:
        """Its place among the tenant's contexts; given back where its making fails."""
        try:
            await self._records.put(cache_salt, record)
            if fault := rules.fault_of(record, await self._others(cache_salt)):
                raise fault
            await self._records.put_content(cache_salt, record.id, content)
            yield
        except BaseException:
            task = asyncio.create_task(self._undo(cache_salt, record.id))
            self._undoings.add(task)
            task.add_done_callback(self._undoings.discard)
            await asyncio.shield(task)
            raise

    async def _others(self, cache_salt: bytes) -> list[contexts_pb2.ContextRecord]:
        """Those that still count. The others go now: a tenant that makes many short-lived ones must
        not fill the store between two sweeps."""
        now, living = clock.unix_ms(), []
        for record in await self._records.list_of(cache_salt):
            if rules.is_over(record, now):
                await self._records.delete(cache_salt, record.id)
            else:
                living.append(record)
        return living

    async def _undo(self, cache_salt: bytes, context_id: str) -> None:
        try:
            await self._records.delete(cache_salt, context_id)
            await self._keepers.drop(cache_salt, context_id)
        except DeepFlowError as error:
            log.warning("the context %s stays until it expires: %s", context_id, error)

    async def _compute(
        self,
        request: contexts_pb2.CreateContextCacheRequest,
        record: contexts_pb2.ContextRecord,
        tokens: list[int],
    ) -> contexts_pb2.KeepContextResponse:
        """Like a job's task: in its tenant's turn, where it causes the least work, and elsewhere
        where that one cannot."""
        parts, salt = self._parts, request.context.cache_salt
        (blocks,) = await parts.matcher.identify(record.model, [tokens], salt)
        features = RequestFeatures(record.model, len(tokens), 0)
        tried: set[str] = set()
        async with self._turn(request) as ticket:
            while True:
                group = parts.links.group_view(record.model, frozenset(tried))
                group = parts.matcher.show(group, blocks)
                chosen = parts.policy.choose(features, group).task_executor_id
                if not tried:
                    parts.room.charge_input(ticket, group.uncached(chosen, len(tokens)))
                keep = keep_request(record, salt, tokens, _seconds_left(record))
                try:
                    kept = await self._keepers.keep(chosen, keep, _patience(request.context))
                    record.kept_by = chosen
                    record.kept_by_incarnation = self._keepers.incarnation(chosen)
                    return kept
                except (Unavailable, RateLimited) as error:
                    tried.add(chosen)
                    log.info("task executor %s cannot keep a context: %s", chosen, error)
                    if len(tried) >= parts.placement_attempts_max or not self._has_other(
                        record.model, tried
                    ):
                        raise

    def _has_other(self, model: str, tried: set[str]) -> bool:
        with contextlib.suppress(Unavailable):
            return bool(self._parts.links.group_view(model, frozenset(tried)).executors)
        return False

    @contextlib.asynccontextmanager
    async def _turn(self, request: contexts_pb2.CreateContextCacheRequest) -> AsyncIterator[Ticket]:
        room, tenant = self._parts.room, request.context.tenant
        room.check(tenant)
        guest = _Guest()
        weight, rank = weight_of(request.tenant_weight), rank_of(request.context)
        ticket = Ticket(guest, request.model, tenant, weight, rank)
        try:
            room.ask(ticket)
            async with asyncio.timeout(room.limits.seconds_max):
                await guest.is_called.wait()
        except TimeoutError as error:
            room.leave(ticket)
            raise room.waited_too_long() from error
        except BaseException:
            room.leave(ticket)
            raise
        try:
            yield ticket
        finally:
            room.leave(ticket)


class _Guest:
    """Waits for its turn; it draws no tokens."""

    num_new_tokens = 0

    def __init__(self) -> None:
        self.is_called = asyncio.Event()

    def called(self) -> None:
        self.is_called.set()


def _new_record(
    request: contexts_pb2.CreateContextCacheRequest, tokens: list[int]
) -> contexts_pb2.ContextRecord:
    now = clock.unix_ms()
    return contexts_pb2.ContextRecord(
        id=rules.new_context_id(),
        model=request.model,
        name=request.name,
        created_unix_ms=now,
        expires_unix_ms=now + int(request.ttl_seconds * 1000),
        is_pinned=request.is_pinned,
        content_bytes=request.content.ByteSize(),
        num_tokens=len(tokens),
        tokens_digest=prefix.digest_of(tokens),
    )


def _response(
    record: contexts_pb2.ContextRecord, answer: contexts_pb2.KeepContextResponse
) -> contexts_pb2.CreateContextCacheResponse:
    return contexts_pb2.CreateContextCacheResponse(
        cache=contexts_pb2.ContextCache(
            record=record,
            state=contexts_pb2.CONTEXT_STATE_READY,
            kv_bytes=answer.kept.kv_bytes,
        ),
        usage=types.Usage(prompt_tokens=record.num_tokens, cached_tokens=answer.cached_tokens),
    )


def _seconds_left(record: contexts_pb2.ContextRecord) -> float:
    return max(0.001, (record.expires_unix_ms - clock.unix_ms()) / 1000)


def _patience(context: types.WorkContext) -> float:
    if not context.deadline_unix_ms:
        return COMPUTE_SECONDS_MAX
    return max(0.001, (context.deadline_unix_ms - clock.unix_ms()) / 1000)
