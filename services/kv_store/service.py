"""The gRPC face: proto in, proto out, nothing decided."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from deepflow import clock
from deepflow.errors import DeepFlowError
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceServicer
from services.kv_store import metrics
from services.kv_store.leases.leases import Leases
from services.kv_store.records.records import Fence, Record, Records

# Told of the key of every record that was changed.
Written = Callable[[str], Awaitable[None]]


class RecordStoreService(RecordStoreServiceServicer):
    def __init__(self, records: Records, leases: Leases, written: Written) -> None:
        self._records = records
        self._leases = leases
        self._written = written

    async def Get(
        self, request: store_pb2.GetRecordRequest, context: Any
    ) -> store_pb2.GetRecordResponse:
        with counted("Get"):
            record = await self._records.get(request.key)
        return store_pb2.GetRecordResponse(record=_to_proto(record) if record else None)

    async def Put(
        self, request: store_pb2.PutRecordRequest, context: Any
    ) -> store_pb2.PutRecordResponse:
        expected = request.expected_version if request.HasField("expected_version") else None
        with counted("Put"):
            fence = Fence(request.lease, request.fencing_token)
            version = await self._records.put(request.key, request.value, expected, fence)
        await self._written(request.key)
        return store_pb2.PutRecordResponse(version=version)

    async def Delete(
        self, request: store_pb2.DeleteRecordRequest, context: Any
    ) -> store_pb2.DeleteRecordResponse:
        with counted("Delete"):
            fence = Fence(request.lease, request.fencing_token)
            existed = await self._records.delete(request.key, fence)
        await self._written(request.key)
        return store_pb2.DeleteRecordResponse(existed=existed)

    async def List(
        self, request: store_pb2.ListRecordsRequest, context: Any
    ) -> store_pb2.ListRecordsResponse:
        with counted("List"):
            generation, records = await self._records.list(request.prefix)
        return store_pb2.ListRecordsResponse(records=map(_to_proto, records), generation=generation)

    async def AcquireLease(
        self, request: store_pb2.AcquireLeaseRequest, context: Any
    ) -> store_pb2.AcquireLeaseResponse:
        with counted("AcquireLease"):
            lease = await self._leases.acquire(
                request.name, request.holder, request.ttl_seconds, request.known_token
            )
        return store_pb2.AcquireLeaseResponse(
            acquired=lease.holder == request.holder,
            fencing_token=lease.token,
            holder=lease.holder,
            remaining_seconds=lease.remaining_seconds,
        )

    async def ReleaseLease(
        self, request: store_pb2.ReleaseLeaseRequest, context: Any
    ) -> store_pb2.ReleaseLeaseResponse:
        with counted("ReleaseLease"):
            await self._leases.release(request.name, request.holder, request.fencing_token)
        return store_pb2.ReleaseLeaseResponse()


@contextlib.contextmanager
def counted(method: str) -> Iterator[None]:
    started, outcome = clock.monotonic(), "cancelled"
    try:
        yield
        outcome = "ok"
    except DeepFlowError as error:
        outcome = error.reason
        raise
    finally:
        metrics.CALLS.labels(method, outcome).inc()
        metrics.CALL_SECONDS.labels(method).observe(clock.monotonic() - started)


def _to_proto(record: Record) -> store_pb2.Record:
    return store_pb2.Record(key=record.key, value=record.value, version=record.version)
