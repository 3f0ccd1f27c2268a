"""Feeds the prompt tree: events and heartbeats from NATS, whole indexes where some are missing."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable

from deepflow import clock
from deepflow.background import end
from deepflow.bus import Bus
from deepflow.config import ServiceConfig
from deepflow.errors import DeepFlowError
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor import metrics
from services.job_executor.prompt_tree.index_reader import Index, read_index, read_stored_index
from services.job_executor.prompt_tree.tree import PromptTree

log = logging.getLogger(__name__)

KV_SUBJECT = "deepflow.kv"
LOOK_SECONDS = 0.1
READS_AT_ONCE_MAX = 4
# Between two readings of one task executor, also where all goes well.
READ_AGAIN_SECONDS = 1.0
RETRY_FIRST_SECONDS = 0.5
RETRY_MAX_SECONDS = 10.0


class KvListener:
    """Nothing waits for it: while it knows too little, requests are placed by load alone."""

    def __init__(self, config: ServiceConfig, bus: Bus, tree: PromptTree) -> None:
        self._token = config.cluster_token
        self._bus = bus
        self._tree = tree
        self._store = Peer(config.kv_store_address, config.cluster_token)
        self._addresses: dict[str, str] = {}
        self._work: dict[str, asyncio.Task[None]] = {}  # by task executor: one reading at a time
        self._pauses: dict[str, float] = {}  # after failures, the pause that comes next
        self._not_before: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._bus.subscribe(f"{KV_SUBJECT}.*", events_pb2.KvEvents, self._note_events)
        self._looking = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        await end(*self._work.values(), self._looking)
        await self._store.close()

    def adopt(self, members: Iterable[cluster_pb2.Member]) -> None:
        """Follow the task executors of a view, and forget all others."""
        executors = {it.id: it for it in members if it.kind == types.MEMBER_KIND_TASK_EXECUTOR}
        self._addresses = {name: it.address for name, it in executors.items()}
        for gone in [name for name in self._work if name not in executors]:
            self._work.pop(gone).cancel()
        for known in (self._pauses, self._not_before):
            for gone in known.keys() - executors.keys():
                del known[gone]
        for name in self._tree.follow({name: it.incarnation for name, it in executors.items()}):
            self._begin(name, self._warm_up(name))

    def note_heartbeat(self, beat: events_pb2.Heartbeat) -> None:
        self._tree.note_heartbeat(beat, clock.monotonic())

    async def _note_events(self, events: events_pb2.KvEvents) -> None:
        self._tree.note_events(events, clock.monotonic())

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = clock.monotonic()
            for name in self._tree.in_need(now):
                is_due = now >= self._not_before.get(name, 0.0)
                if is_due and name not in self._work and len(self._work) < READS_AT_ONCE_MAX:
                    self._begin(name, self._read(name))

    def _begin(self, name: str, reading: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(reading)
        self._work[name] = task
        task.add_done_callback(lambda _: self._end(name, task))

    def _end(self, name: str, task: "asyncio.Task[None]") -> None:
        if self._work.get(name) is task:
            del self._work[name]

    async def _warm_up(self, name: str) -> None:
        """A job executor that starts learns what was so a while ago, then what changed since."""
        try:
            index = await read_stored_index(self._store, name)
        except DeepFlowError as error:
            metrics.KV_INDEX_READS.labels("kv_store", error.reason).inc()
            log.info("no stored KV index of %s: %s", name, error)
            return
        if index is not None:
            self._adopt(name, index, "kv_store")

    async def _read(self, name: str) -> None:
        try:
            index = await read_index(self._addresses[name], self._token)
        except DeepFlowError as error:
            pause = self._pauses.get(name, RETRY_FIRST_SECONDS)
            self._pauses[name] = min(pause * 2, RETRY_MAX_SECONDS)
            self._not_before[name] = clock.monotonic() + pause
            metrics.KV_INDEX_READS.labels("task_executor", error.reason).inc()
            log.info("cannot read the KV index of %s: %s", name, error)
            return
        self._pauses.pop(name, None)
        self._not_before[name] = clock.monotonic() + READ_AGAIN_SECONDS
        self._adopt(name, index, "task_executor")

    def _adopt(self, name: str, index: Index, source: str) -> None:
        follower = self._tree.get(name)
        if follower is None:
            return  # it left meanwhile
        now = clock.monotonic()
        was_news = follower.adopt(index.incarnation, index.seq, index.blocks, now)
        metrics.KV_INDEX_READS.labels(source, "ok").inc()
        if was_news:
            log.info("KV index of %s: %d blocks", name, len(index.blocks))
