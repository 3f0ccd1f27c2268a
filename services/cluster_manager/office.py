"""What taking and losing leadership means for the parts."""

import logging

from deepflow import clock
from deepflow.lifecycle import Lifecycle
from deepflow.membership import VIEW_RECORD
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager import metrics
from services.cluster_manager.deployments.catalog import Catalog
from services.cluster_manager.manager import Manager
from services.cluster_manager.masters.roster import Roster
from services.cluster_manager.masters.view import ViewPublisher
from services.cluster_manager.store import Store

log = logging.getLogger(__name__)


class LeadersOffice:
    """Reads what the last leader left; a standby knows nothing and does nothing."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        store: Store,
        *,
        roster: Roster,
        catalog: Catalog,
        manager: Manager,
    ) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._roster = roster
        self._catalog = catalog
        self._manager = manager
        self.view: ViewPublisher | None = None

    async def take(self, token: int, *, is_continued: bool) -> None:
        assert self.view is not None
        if not is_continued:
            await self._catalog.read()
            await self._remember_members()
        self.view.begin(token)
        self._manager.loads.term = token
        self._manager.is_active = True
        metrics.IS_LEADER.set(1)
        self._lifecycle.to(types.LIFECYCLE_STATE_READY)
        self._manager.wake()

    def give_up(self, leader: str) -> None:
        if self._manager.is_active:
            self._manager.is_active = False
            self._manager.forget_lives([member.id for member in self._roster.members()])
            self._roster.clear()
            self._catalog.clear()
        metrics.IS_LEADER.set(0)
        standby = f"standby; leader is {leader}"
        if standby != self._lifecycle.detail:
            self._lifecycle.to(types.LIFECYCLE_STATE_STARTING, standby)

    def wait(self, reason: str) -> None:
        if not self._manager.is_active:
            self._lifecycle.to(types.LIFECYCLE_STATE_STARTING, reason)

    async def _remember_members(self) -> None:
        stored = await self._store.get(VIEW_RECORD)
        if stored is None:
            return
        view = cluster_pb2.ClusterView.FromString(stored)
        log.info("%d members of the stored view are expected back", len(view.members))
        self._roster.remember(list(view.members), clock.monotonic())
