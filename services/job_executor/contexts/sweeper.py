"""Takes expired contexts out of the store. Every job executor does it: twice is as good as once."""

import asyncio
import logging
import random

from deepflow import clock
from deepflow.background import end
from deepflow.errors import DeepFlowError
from services.job_executor.contexts import rules
from services.job_executor.contexts.records import ContextRecords

log = logging.getLogger(__name__)

SWEEP_SECONDS = 300.0
# In one sweep; the next one goes on.
DELETIONS_MAX = 1000


class Sweeper:
    def __init__(self, records: ContextRecords, *, seconds: float = SWEEP_SECONDS) -> None:
        self._records = records
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        await end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds * random.uniform(0.5, 1.5))
            try:
                await self.sweep()
            except DeepFlowError as error:
                log.info("expired contexts stay for now: %s", error)

    async def sweep(self) -> int:
        """How many were taken away."""
        now = clock.unix_ms()
        found = await self._records.list_all()
        expired = [(salt, it.id) for salt, it in found if rules.is_over(it, now)]
        for salt, context_id in expired[:DELETIONS_MAX]:
            await self._records.delete(salt, context_id)
        return len(expired[:DELETIONS_MAX])
