"""The gRPC face of the disposable space: proto in, proto out, nothing decided."""

from typing import Any

from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import DisposableStoreServiceServicer
from services.kv_store.disposable.disposables import Disposables
from services.kv_store.service import counted


class DisposableStoreService(DisposableStoreServiceServicer):
    def __init__(self, disposables: Disposables) -> None:
        self._disposables = disposables

    async def Get(
        self, request: cache_pb2.GetDisposableRequest, context: Any
    ) -> cache_pb2.GetDisposableResponse:
        with counted("GetDisposable"):
            value = await self._disposables.get(request.key)
        if value is None:
            return cache_pb2.GetDisposableResponse()
        found = cache_pb2.Disposable(key=request.key, value=value)
        return cache_pb2.GetDisposableResponse(disposable=found)

    async def Put(
        self, request: cache_pb2.PutDisposableRequest, context: Any
    ) -> cache_pb2.PutDisposableResponse:
        with counted("PutDisposable"):
            await self._disposables.put(request.key, request.value, request.ttl_seconds)
        return cache_pb2.PutDisposableResponse()

    async def List(
        self, request: cache_pb2.ListDisposablesRequest, context: Any
    ) -> cache_pb2.ListDisposablesResponse:
        with counted("ListDisposables"):
            page = await self._disposables.list(request.prefix, request.after)
        found = (cache_pb2.Disposable(key=key, value=value) for key, value in page.values)
        return cache_pb2.ListDisposablesResponse(disposables=found, is_truncated=page.is_truncated)
