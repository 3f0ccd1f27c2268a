"""KvIndexService: the whole prefix index, for job executors that missed events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from deepflow import rpc
from deepflow.errors import RateLimited
from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import KvIndexServiceServicer
from services.task_executor.shell.kv_events import KvEventPublisher

READINGS_MAX = 4
CHUNK_BLOCKS_MAX = 8192  # about 150 KiB
# Between chunks, so that a big index delays no token: 400,000 blocks a second and reader.
CHUNK_PAUSE_SECONDS = 0.02
RETRY_SECONDS = 1.0


class KvIndexService(KvIndexServiceServicer):
    def __init__(self, events: KvEventPublisher) -> None:
        self._events = events
        self._num_readings = 0

    async def ReadKvIndex(
        self, request: cache_pb2.ReadKvIndexRequest, context: Any
    ) -> AsyncIterator[cache_pb2.KvIndexChunk]:
        if self._num_readings >= READINGS_MAX:
            await rpc.abort(
                context,
                RateLimited(
                    f"{self._num_readings} job executors read this KV index already",
                    reason="kv_index_busy",
                    retry_after_seconds=RETRY_SECONDS,
                ),
            )
        self._num_readings += 1
        try:
            for chunk in self._events.read_index(CHUNK_BLOCKS_MAX):
                yield chunk
                if chunk.number + 1 < chunk.count:
                    await asyncio.sleep(CHUNK_PAUSE_SECONDS)
        finally:
            self._num_readings -= 1
