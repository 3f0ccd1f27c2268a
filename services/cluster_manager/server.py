"""Builds the cluster manager and serves it."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine

import grpc.aio

from deepflow import __version__, background, rpc
from deepflow.bus import Bus
from deepflow.health import HealthServer
from deepflow.ids import new_id, new_incarnation
from deepflow.lifecycle import Lifecycle
from deepflow.membership import HEARTBEAT_SUBJECT
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cluster_pb2_grpc import add_ClusterManagerServiceServicer_to_server
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.deployments.catalog import Catalog
from services.cluster_manager.drivers.registry import make_driver
from services.cluster_manager.manager import Manager
from services.cluster_manager.masters.leadership import Leadership
from services.cluster_manager.masters.roster import Roster
from services.cluster_manager.masters.view import ViewPublisher
from services.cluster_manager.office import LeadersOffice
from services.cluster_manager.service import ClusterManagerService
from services.cluster_manager.store import Store

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0
PAUSE_AFTER_BUG_SECONDS = 1.0


class ClusterManagerServer:
    def __init__(self, config: ClusterManagerConfig) -> None:
        self.lifecycle = Lifecycle()
        self.id = config.id or new_id("cluster_manager")
        self.port = 0
        self._config = config
        self._incarnation = new_incarnation()
        self._health = HealthServer(self.lifecycle)
        self._bus = Bus(config, self.id)
        self._store: Store | None = None
        self._grpc: grpc.aio.Server | None = None
        self._manager: Manager | None = None
        self._leadership: Leadership | None = None
        self._view: ViewPublisher | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def health_port(self) -> int:
        return self._health.port

    async def start(self) -> None:
        config = self._config
        await self._health.start(config.host, config.health_port)
        await self._build()
        self._bus.start()

    async def drain(self) -> None:
        """Nothing runs here that anybody waits for."""

    async def stop(self) -> None:
        await background.end(*self._tasks)
        if self._grpc is not None:
            await self._grpc.stop(STOP_SECONDS)
        if self._manager is not None:
            await self._manager.close()
        if self._view is not None:
            await self._view.flush()
        if self._leadership is not None:
            await self._leadership.resign()
        if self._store is not None:
            await self._store.close()
        await self._bus.close()
        await self._health.close()

    async def _build(self) -> None:
        """Wire the parts; nothing of them moves before leadership is taken."""
        config = self._config
        self._store = store = Store(config)
        roster, catalog = Roster(config.member_timeout_seconds), Catalog(store)
        self._manager = manager = Manager(
            config, roster=roster, catalog=catalog, driver=make_driver(config)
        )
        office = LeadersOffice(
            self.lifecycle, store, roster=roster, catalog=catalog, manager=manager
        )
        self._leadership = leadership = Leadership(
            store,
            office,
            id=self.id,
            incarnation=self._incarnation,
            ttl_seconds=config.lease_seconds,
        )
        manager.is_sure = lambda: leadership.is_sure
        view = ViewPublisher(self._bus, store, leadership, self._fill_view)
        self._view = manager.view = office.view = view
        service = ClusterManagerService(
            config,
            leadership=leadership,
            roster=roster,
            catalog=catalog,
            manager=manager,
            view=view,
            own_id=self.id,
        )
        await self._listen(service)
        await self._bus.subscribe(f"{HEARTBEAT_SUBJECT}.*.*", events_pb2.Heartbeat, service.hear)
        self._bus.on_reconnect(view.publish_again)
        manager.start()
        self._run(
            leadership.run,
            manager.run,
            view.publish_forever,
            view.store_forever,
            self._send_heartbeats,
        )

    async def _listen(self, service: ClusterManagerService) -> None:
        self._grpc = rpc.new_server(self._config.cluster_token)
        add_ClusterManagerServiceServicer_to_server(service, self._grpc)
        self.port = await rpc.listen(self._grpc, self._config.host, self._config.port)

    def _run(self, *loops: Callable[[], Coroutine[None, None, None]]) -> None:
        self._tasks += [asyncio.create_task(_keep_running(loop)) for loop in loops]

    async def _send_heartbeats(self) -> None:
        """All that a standby has to say: the leader makes it a member by that."""
        subject = f"{HEARTBEAT_SUBJECT}.cluster_manager.{self.id}"
        while True:
            beat = events_pb2.Heartbeat(
                id=self.id, incarnation=self._incarnation, member=self._member()
            )
            await self._bus.publish(subject, beat)
            await asyncio.sleep(self._config.heartbeat_interval_seconds)

    def _fill_view(self, view: cluster_pb2.ClusterView) -> None:
        assert self._manager is not None
        self._manager.fill(view)
        view.members.append(self._member())

    def _member(self) -> cluster_pb2.Member:
        """This process: a member by its own word."""
        host = self._config.advertised_host
        return cluster_pb2.Member(
            id=self.id,
            kind=types.MEMBER_KIND_CLUSTER_MANAGER,
            incarnation=self._incarnation,
            address=f"{host}:{self.port}",
            health_address=f"{host}:{self._health.port}",
            state=self.lifecycle.state,
            detail=self.lifecycle.detail,
            started_unix_ms=self.lifecycle.started_unix_ms,
            state_since_unix_ms=self.lifecycle.since_unix_ms,
            pid=os.getpid(),
            version=__version__,
        )


async def _keep_running(loop: Callable[[], Coroutine[None, None, None]]) -> None:
    """The top of every loop: a bug in one round is told, and does not end the cluster's care."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed and begins anew", loop.__qualname__)
            await asyncio.sleep(PAUSE_AFTER_BUG_SECONDS)
