"""Keeps a copy of the prefix index in the kv_store, so that a job executor that starts is not cold.

Written at a bounded rate and only where something changed; nobody waits for it, and it may be lost.
"""

import asyncio
import logging

from deepflow import clock
from deepflow.background import end
from deepflow.config import ServiceConfig
from deepflow.errors import DeepFlowError
from deepflow.rpc import Peer
from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import DisposableStoreServiceStub
from services.task_executor.shell.kv_events import KvEventPublisher

log = logging.getLogger(__name__)

STORED_INDEX = "kv-index"  # key: kv-index/<task executor>/<number of the chunk>
CHUNK_BLOCKS_MAX = 8192  # about 150 KiB
TTL_SECONDS = 600.0
CALL_SECONDS = 5.0


class KvStoreCopy:
    def __init__(
        self,
        config: ServiceConfig,
        events: KvEventPublisher,
        task_executor_id: str,
        *,
        seconds: float,
    ) -> None:
        self._store = Peer(config.kv_store_address, config.cluster_token)
        self._events = events
        self._id = task_executor_id
        self._seconds = seconds
        self._stored_seq = 0
        self._stored_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        await end(self._task)
        await self._store.close()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            if not self._is_due():
                continue
            try:
                await self._write()
            except DeepFlowError as error:
                log.info("the kv_store has no copy of the KV index: %s", error)

    def _is_due(self) -> bool:
        seq = self._events.last_seq
        is_old = clock.monotonic() - self._stored_at > TTL_SECONDS / 2
        return seq > self._stored_seq or (seq > 0 and is_old)

    async def _write(self) -> None:
        stub = DisposableStoreServiceStub(self._store.channel)
        seq = self._events.last_seq
        for chunk in self._events.read_index(CHUNK_BLOCKS_MAX):
            request = cache_pb2.PutDisposableRequest(
                key=f"{STORED_INDEX}/{self._id}/{chunk.number:05}",
                value=chunk.SerializeToString(),
                ttl_seconds=TTL_SECONDS,
            )
            await self._store.call(stub.Put, request, timeout_seconds=CALL_SECONDS, idempotent=True)
        self._stored_seq, self._stored_at = seq, clock.monotonic()
