"""How a process takes part in the cluster: it registers, sends heartbeats and keeps a view.

The view is a replica that can be thrown away. It only ever moves to a greater (term, version), and
losing NATS, the cluster manager or the kv_store freezes it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from deepflow import __version__, background
from deepflow.bus import Bus
from deepflow.cluster_managers import ClusterManagers
from deepflow.config import ServiceConfig
from deepflow.errors import DeepFlowError
from deepflow.ids import new_incarnation
from deepflow.lifecycle import Lifecycle
from deepflow.rpc import Peer
from deepflow.subjects import kind_word as kind_word
from deepflow.v1 import cluster_pb2, events_pb2, store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub

log = logging.getLogger(__name__)

VIEW_SUBJECT = "deepflow.view"
HEARTBEAT_SUBJECT = "deepflow.heartbeat"
VIEW_RECORD = "cluster/view"

CALL_SECONDS = 5.0
RETRY_SECONDS = 0.3
HEARTBEAT_SECONDS = 1.0


def is_newer(candidate: cluster_pb2.ClusterView, current: cluster_pb2.ClusterView) -> bool:
    return (candidate.term, candidate.version) > (current.term, current.version)


class Membership:
    """One member's tie to the cluster; everything in it runs beside the member's work."""

    def __init__(
        self,
        config: ServiceConfig,
        bus: Bus,
        lifecycle: Lifecycle,
        *,
        member: cluster_pb2.Member,
        load: Callable[[events_pb2.Heartbeat], None],
        on_view: Callable[[cluster_pb2.ClusterView], None] | None = None,
    ) -> None:
        """`member` holds kind, id, pid and addresses; `load` fills each heartbeat."""
        self.member = member
        self.member.version = __version__
        self.member.incarnation = self.member.incarnation or new_incarnation()
        self.view = cluster_pb2.ClusterView()
        self._bus = bus
        self._lifecycle = lifecycle
        self._fill_load = load
        self._on_view = on_view
        self._manager = ClusterManagers(config.cluster_manager_address, config.cluster_token)
        self._store = Peer(config.kv_store_address, config.cluster_token)
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeat_seconds = HEARTBEAT_SECONDS

    async def start(self) -> None:
        """Never waits for anybody: registration and the first view arrive when they can."""
        await self._bus.subscribe(VIEW_SUBJECT, events_pb2.ViewChanged, self._receive_view)
        self._bus.on_reconnect(self._announce)
        self._lifecycle.on_change(self._changed.set)
        self._changed.set()
        self._tasks = [
            asyncio.create_task(self._keep_registered()),
            asyncio.create_task(self._send_heartbeats()),
            asyncio.create_task(self._read_stored_view()),
        ]

    def changed(self) -> None:
        """The member record changed: tell the cluster manager."""
        self._changed.set()

    def adopt(self, view: cluster_pb2.ClusterView) -> None:
        if is_newer(view, self.view):
            self.view = view
            if self._on_view is not None:
                self._on_view(view)

    async def close(self) -> None:
        """Say goodbye where somebody listens."""
        await background.end(*self._tasks)
        request = cluster_pb2.DeregisterRequest(
            id=self.member.id, incarnation=self.member.incarnation
        )
        try:
            await self._manager.call(lambda it: it.Deregister, request, timeout_seconds=0.5)
        except DeepFlowError as error:
            log.info("left without a goodbye: %s", error)
        await self._manager.close()
        await self._store.close()

    async def _announce(self) -> None:
        self._changed.set()

    async def _receive_view(self, event: events_pb2.ViewChanged) -> None:
        self.adopt(event.view)

    async def _keep_registered(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._refresh()
            request = cluster_pb2.RegisterRequest(member=self.member)
            try:
                reply = await self._manager.call(
                    lambda it: it.Register,
                    request,
                    timeout_seconds=CALL_SECONDS,
                    idempotent=True,
                )
            except DeepFlowError as error:
                log.info("not registered yet: %s", error)
                self._changed.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._heartbeat_seconds = reply.heartbeat_interval_seconds
            self._news.set()  # who listens hears at once of what the cluster manager was told
            self.adopt(reply.view)

    def _refresh(self) -> None:
        self.member.state = self._lifecycle.state
        self.member.detail = self._lifecycle.detail
        self.member.started_unix_ms = self._lifecycle.started_unix_ms
        self.member.state_since_unix_ms = self._lifecycle.since_unix_ms

    async def _send_heartbeats(self) -> None:
        subject = f"{HEARTBEAT_SUBJECT}.{kind_word(self.member.kind)}.{self.member.id}"
        while True:
            self._refresh()
            beat = events_pb2.Heartbeat(
                id=self.member.id,
                incarnation=self.member.incarnation,
                member=self.member,
                view_term=self.view.term,
                view_version=self.view.version,
            )
            self._fill_load(beat)
            await self._bus.publish(subject, beat)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._heartbeat_seconds)
            self._news.clear()

    async def _read_stored_view(self) -> None:
        """The last view, for a start while the cluster manager is away."""
        stub = RecordStoreServiceStub(self._store.channel)
        request = store_pb2.GetRecordRequest(key=VIEW_RECORD)
        try:
            reply = await self._store.call(
                stub.Get, request, timeout_seconds=CALL_SECONDS, idempotent=True
            )
        except DeepFlowError as error:
            log.info("no stored view: %s", error)
            return
        if reply.HasField("record"):
            self.adopt(cluster_pb2.ClusterView.FromString(reply.record.value))
