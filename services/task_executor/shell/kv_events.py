"""Numbers what enters and leaves the prefix index and tells whoever keeps a prompt tree.

Every number is used once per incarnation, also for an event that could not be sent: a listener
sees the gap, in the next event or in the heartbeat's last_kv_seq, and asks for a snapshot.
"""

import asyncio
from collections.abc import Iterator, Sequence

from deepflow import background
from deepflow.bus import Bus
from deepflow.v1 import cache_pb2, events_pb2
from services.task_executor.flowserve.messages import KvChange
from services.task_executor.shell.kv_index import KvIndex, chunks
from services.task_executor.shell.translate import to_kv_event

KV_SUBJECT = "deepflow.kv"
GATHER_SECONDS = 0.02
PENDING_EVENTS_MAX = 10_000


class KvEventPublisher:
    """Gathers the changes of many steps into few messages."""

    def __init__(self, bus: Bus, task_executor_id: str, incarnation: int) -> None:
        self._bus = bus
        self._id = task_executor_id
        self._incarnation = incarnation
        self._pending: list[events_pb2.KvEvent] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.index = KvIndex()
        self.last_seq = 0  # of the last event that the index contains

    def start(self) -> None:
        self._task = asyncio.create_task(self._publish())

    def add(self, changes: Sequence[KvChange]) -> None:
        self._append([to_kv_event(change) for change in changes])

    def cleared(self) -> None:
        """The engine lost every block: it died or changed its model."""
        self._append([events_pb2.KvEvent(cleared=True)])

    def read_index(self, blocks_max: int) -> Iterator[cache_pb2.KvIndexChunk]:
        """The index as it is at the first chunk, in chunks of at most so many blocks."""
        yield from chunks(
            self.index.copy(),
            incarnation=self._incarnation,
            seq=self.last_seq,
            blocks_max=blocks_max,
        )

    async def close(self) -> None:
        await background.end(self._task)

    def _append(self, events: list[events_pb2.KvEvent]) -> None:
        if not events:
            return
        for event in events:
            self.index.apply(event)
        self._pending += events
        self.last_seq += len(events)
        del self._pending[:-PENDING_EVENTS_MAX]  # the oldest go first; their numbers tell
        self._wake.set()

    async def _publish(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            events, self._pending = self._pending, []
            message = events_pb2.KvEvents(
                task_executor_id=self._id,
                incarnation=self._incarnation,
                first_seq=self.last_seq - len(events) + 1,
                events=events,
            )
            await self._bus.publish(f"{KV_SUBJECT}.{self._id}", message)
