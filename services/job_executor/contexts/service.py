"""ContextCacheService: contexts made, shown and deleted, for gateways."""

from typing import Any

from deepflow import clock
from deepflow.v1 import contexts_pb2
from deepflow.v1.contexts_pb2_grpc import ContextCacheServiceServicer
from services.job_executor.contexts import rules
from services.job_executor.contexts.keepers import Keepers, Kept
from services.job_executor.contexts.making import ContextMaker
from services.job_executor.contexts.records import ContextRecords


class ContextCacheService(ContextCacheServiceServicer):
    def __init__(self, maker: ContextMaker, records: ContextRecords, keepers: Keepers) -> None:
        self._maker = maker
        self._records = records
        self._keepers = keepers

    async def CreateContextCache(
        self, request: contexts_pb2.CreateContextCacheRequest, context: Any
    ) -> contexts_pb2.CreateContextCacheResponse:
        return await self._maker.make(request)

    async def GetContextCache(
        self, request: contexts_pb2.GetContextCacheRequest, context: Any
    ) -> contexts_pb2.GetContextCacheResponse:
        salt = request.context.cache_salt
        record = await self._find(salt, request.id)
        cache = _shown(record, await self._keepers.kept(salt))
        return contexts_pb2.GetContextCacheResponse(cache=cache)

    async def ListContextCaches(
        self, request: contexts_pb2.ListContextCachesRequest, context: Any
    ) -> contexts_pb2.ListContextCachesResponse:
        salt, now = request.context.cache_salt, clock.unix_ms()
        records = [it for it in await self._records.list_of(salt) if rules.is_alive(it, now)]
        records.sort(key=lambda it: (-it.created_unix_ms, it.id))
        kept = await self._keepers.kept(salt) if records else Kept({}, True)
        caches = (_shown(record, kept) for record in records)
        return contexts_pb2.ListContextCachesResponse(caches=caches)

    async def DeleteContextCache(
        self, request: contexts_pb2.DeleteContextCacheRequest, context: Any
    ) -> contexts_pb2.DeleteContextCacheResponse:
        """First where it is found, then what it holds."""
        salt = request.context.cache_salt
        await self._find(salt, request.id)
        await self._records.delete(salt, request.id)
        await self._keepers.drop(salt, request.id)
        return contexts_pb2.DeleteContextCacheResponse()

    async def _find(self, cache_salt: bytes, context_id: str) -> contexts_pb2.ContextRecord:
        if not rules.is_context_id(context_id):
            raise rules.not_found(context_id)
        record = await self._records.get(cache_salt, context_id)
        if record is None or not rules.is_alive(record, clock.unix_ms()):
            raise rules.not_found(context_id)
        return record


def _shown(record: contexts_pb2.ContextRecord, kept: Kept) -> contexts_pb2.ContextCache:
    return contexts_pb2.ContextCache(
        record=record,
        state=kept.state_of(record.id),
        kv_bytes=kept.bytes_by_id.get(record.id, 0),
    )
