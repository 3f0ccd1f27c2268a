"""The gRPC face of the counters: proto in, proto out, nothing decided."""

from typing import Any

from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import CounterServiceServicer
from services.kv_store.counters.limits import Limits
from services.kv_store.counters.usage import UsageSums
from services.kv_store.service import counted


class CounterService(CounterServiceServicer):
    def __init__(self, limits: Limits, usage: UsageSums) -> None:
        self._limits = limits
        self._usage = usage

    async def Take(self, request: store_pb2.TakeRequest, context: Any) -> store_pb2.TakeResponse:
        with counted("Take"):
            held = await self._limits.hold(request.holder, request.lease_seconds, request.slots)
            taking = await self._limits.take(request.takes)
        return store_pb2.TakeResponse(
            taken=[store_pb2.Taken(granted=g, remaining=r) for g, r in taking.taken],
            held=held,
            window=taking.window,
            resets_in_seconds=taking.resets_in_seconds,
        )

    async def AddUsage(
        self, request: store_pb2.AddUsageRequest, context: Any
    ) -> store_pb2.AddUsageResponse:
        with counted("AddUsage"):
            await self._usage.add(request.reporter, request.batch, request.rows)
        return store_pb2.AddUsageResponse()

    async def ListUsage(
        self, request: store_pb2.ListUsageRequest, context: Any
    ) -> store_pb2.ListUsageResponse:
        with counted("ListUsage"):
            rows = await self._usage.list(request.tenant, request.key_id)
        return store_pb2.ListUsageResponse(rows=rows)
