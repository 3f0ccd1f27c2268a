"""Keeps what is known of keys as new as the records: at once when told, else every few seconds."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from deepflow import clock
from deepflow.access.records import CHANGED_SUBJECT, AccessList, AccessRecords
from deepflow.background import end
from deepflow.bus import Bus
from deepflow.errors import DeepFlowError
from deepflow.v1 import access_pb2

log = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0
RETRY_SECONDS = 0.3
# Unknown keys make it look again, but not more often than this.
LOOK_AGAIN_SECONDS = 1.0


class Follower:
    def __init__(self, records: AccessRecords, adopt: Callable[[AccessList], None]) -> None:
        self.is_current = False  # the last look at the records succeeded
        self._records = records
        self._adopt = adopt
        self._changed = asyncio.Event()
        self._known = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = -LOOK_AGAIN_SECONDS
        self._running: asyncio.Task[None] | None = None

    async def start(self, bus: Bus) -> None:
        await bus.subscribe(CHANGED_SUBJECT, access_pb2.AccessChanged, self._hear)
        bus.on_reconnect(self._missed)
        self._running = asyncio.create_task(self._run())

    async def until_known(self, seconds_max: float) -> None:
        """Return when the records were read once, or when that took too long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), seconds_max)

    async def look_again(self) -> None:
        """Before a key is refused: it may be newer than what is known."""
        is_due = clock.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS
        if self._looking is not None or is_due:
            await self._look()

    async def close(self) -> None:
        await end(self._running, self._looking)

    async def _run(self) -> None:
        while True:
            if self._looking is not None:
                # It may have begun before the news that woke us.
                await asyncio.shield(self._looking)
            self._changed.clear()
            await self._look()
            seconds = REFRESH_SECONDS if self.is_current else RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)

    async def _look(self) -> None:
        """One look at a time; whoever comes meanwhile waits for the same one."""
        if self._looking is None:
            self._looked_at = clock.monotonic()
            self._looking = asyncio.create_task(self._read())
        # Shielded: a client that leaves must not end what others wait for.
        await asyncio.shield(self._looking)

    async def _read(self) -> None:
        try:
            self._adopt(await self._records.read())
            self.is_current = True
            self._known.set()
        except DeepFlowError as error:
            if self.is_current:
                log.warning("keys cannot be read, those that are known stay good: %s", error)
            self.is_current = False
        finally:
            self._looking = None

    async def _hear(self, _event: access_pb2.AccessChanged) -> None:
        self._changed.set()

    async def _missed(self) -> None:
        self._changed.set()
