"""The records, as this service speaks to them."""

import asyncio
import contextlib
from dataclasses import dataclass

from deepflow.rpc import Peer
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from services.cluster_manager.config import ClusterManagerConfig

KNOCK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    token: int
    is_mine: bool
    remaining_seconds: float


class Store:
    """Every call ends within `store_call_seconds`, and raises ours."""

    def __init__(self, config: ClusterManagerConfig) -> None:
        self._peer = Peer(config.kv_store_address, config.cluster_token)
        self._stub = RecordStoreServiceStub(self._peer.channel)
        self._seconds = config.store_call_seconds

    async def wait_until_listening(self) -> None:
        """Knock before the first call: a gRPC channel that failed once waits ever longer."""
        host, _, port = self._peer.address.rpartition(":")
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                return
            await asyncio.sleep(KNOCK_SECONDS)

    async def get(self, key: str) -> bytes | None:
        request = store_pb2.GetRecordRequest(key=key)
        reply = await self._peer.call(
            self._stub.Get, request, timeout_seconds=self._seconds, idempotent=True
        )
        return reply.record.value if reply.HasField("record") else None

    async def list(self, prefix: str) -> list[bytes]:
        request = store_pb2.ListRecordsRequest(prefix=prefix)
        reply = await self._peer.call(
            self._stub.List, request, timeout_seconds=self._seconds, idempotent=True
        )
        return [record.value for record in reply.records]

    async def put(self, key: str, value: bytes, lease: str, token: int) -> None:
        """Fenced and without an expected version: the leader is the only writer of its keys."""
        request = store_pb2.PutRecordRequest(key=key, value=value, lease=lease, fencing_token=token)
        await self._peer.call(
            self._stub.Put, request, timeout_seconds=self._seconds, idempotent=True
        )

    async def delete(self, key: str, lease: str, token: int) -> None:
        request = store_pb2.DeleteRecordRequest(key=key, lease=lease, fencing_token=token)
        await self._peer.call(
            self._stub.Delete, request, timeout_seconds=self._seconds, idempotent=True
        )

    async def acquire(
        self, name: str, holder: str, ttl_seconds: float, known_token: int = 0
    ) -> Lease:
        """A token that is given out is greater than `known_token`."""
        request = store_pb2.AcquireLeaseRequest(
            name=name, holder=holder, ttl_seconds=ttl_seconds, known_token=known_token
        )
        reply = await self._peer.call(
            self._stub.AcquireLease, request, timeout_seconds=self._seconds
        )
        return Lease(reply.holder, reply.fencing_token, reply.acquired, reply.remaining_seconds)

    async def release(self, name: str, holder: str, token: int) -> None:
        request = store_pb2.ReleaseLeaseRequest(name=name, holder=holder, fencing_token=token)
        await self._peer.call(self._stub.ReleaseLease, request, timeout_seconds=self._seconds)

    async def close(self) -> None:
        await self._peer.close()
