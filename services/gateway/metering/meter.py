"""Brings usage to the store every few seconds, and when the gateway ends."""

import asyncio
import logging

from deepflow.background import end
from deepflow.errors import DeepFlowError, InvalidRequest
from deepflow.rpc import Peer
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import CounterServiceStub
from services.gateway import metrics
from services.gateway.metering.ledger import Ledger

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
CALL_SECONDS = 2.0


class Meter:
    """`reporter` names one life of this gateway: batches are counted within it."""

    def __init__(self, reporter: str, store: Peer) -> None:
        self.ledger = Ledger()
        self._reporter = reporter
        self._peer = store
        self._stub = CounterServiceStub(store.channel)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """One last try; what the store does not take now is lost."""
        if self._running is None:
            return
        await end(self._running)
        await self._flush()
        if self.ledger.batch() is not None:
            log.error("usage was not stored: the store is away")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        while (batch := self.ledger.batch()) is not None:
            request = store_pb2.AddUsageRequest(
                reporter=self._reporter, batch=batch.number, rows=batch.rows
            )
            try:
                await self._peer.call(
                    self._stub.AddUsage, request, timeout_seconds=CALL_SECONDS, idempotent=True
                )
            except InvalidRequest as error:
                # Sent again it would be refused again, and hold up all that comes after.
                log.error("the store refuses %d rows of usage: %s", len(batch.rows), error)
                metrics.USAGE_LOST.inc(len(batch.rows))
            except DeepFlowError as error:
                log.warning("usage waits for the store: %s", error)
                return
            self.ledger.confirm(batch)
