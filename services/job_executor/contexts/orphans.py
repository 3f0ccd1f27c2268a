"""Contexts that a task executor keeps although their record is gone: it did not hear of their end.

Looked for where a task executor comes, or comes back, and now and then everywhere. A record is
written before anything is kept and deleted before anything is dropped; so whatever is kept, and has
no record when these are read afterwards, is nobody's.
"""

import asyncio
import contextlib
import logging
import random

from deepflow.background import end
from deepflow.errors import DeepFlowError
from services.job_executor.contexts.keepers import Keepers
from services.job_executor.contexts.records import ContextRecords

log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0


class Orphans:
    def __init__(
        self, records: ContextRecords, keepers: Keepers, *, seconds: float = LOOK_SECONDS
    ) -> None:
        self._records = records
        self._keepers = keepers
        self._seconds = seconds
        self._came: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        await end(self._task)

    def look_at(self, task_executor_id: str) -> None:
        """It is there from now on: soon, and by itself."""
        self._came.add(task_executor_id)
        self._wake.set()

    async def drop(self, task_executor_ids: set[str] | None = None) -> int:
        """How many were dropped there; None looks everywhere."""
        kept = await self._keepers.kept_of_everybody(task_executor_ids)
        if not any(kept.values()):
            return 0
        known = {(salt, record.id) for salt, record in await self._records.list_all()}
        orphans = {context for contexts in kept.values() for context in contexts} - known
        for salt, context_id in sorted(orphans):
            log.info("the context %s is kept although it is gone, and is dropped", context_id)
            await self._keepers.drop(salt, context_id)
        return len(orphans)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds * random.uniform(0.5, 1.5)):
                    await self._wake.wait()
            came, self._came = self._came, set()
            self._wake.clear()
            try:
                await self.drop(came or None)
            except DeepFlowError as error:
                log.info("contexts without a record stay for now: %s", error)
