"""Keeps the cluster as it should be: looks, asks the rules, does what they say."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine

from deepflow import background, clock
from deepflow.errors import DeepFlowError
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager import metrics
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.deployments.catalog import Catalog
from services.cluster_manager.deployments.sizes import by_kind, wanted_sizes
from services.cluster_manager.drivers.base import Driver
from services.cluster_manager.drivers.pods import PodTable
from services.cluster_manager.loads.loads import Loads
from services.cluster_manager.masters.roster import Roster
from services.cluster_manager.masters.view import ViewPublisher
from services.cluster_manager.reconcile.actions import (
    Action,
    Drain,
    LoadModel,
    MarkDead,
    Resume,
    StartPod,
    StopPod,
    UnloadModel,
)
from services.cluster_manager.reconcile.rules import reconcile
from services.cluster_manager.reconcile.state import ClusterState

log = logging.getLogger(__name__)

# Beyond a heartbeat, for the view that says so to have reached everybody.
DRAIN_SETTLE_SECONDS = 0.5


class Manager:
    """The edge around the rules; runs only while this process leads."""

    def __init__(
        self,
        config: ClusterManagerConfig,
        *,
        roster: Roster,
        catalog: Catalog,
        driver: Driver,
    ) -> None:
        self._config = config
        self._roster = roster
        self._catalog = catalog
        self._driver = driver
        self._pods = PodTable()
        self._wake = asyncio.Event()
        self._orders: set[asyncio.Task[None]] = set()
        self._draining: dict[str, tuple[float, str]] = {}  # member: since when, and why
        self.loads = Loads(config, self.changed)
        self.is_active = False
        self.is_sure: Callable[[], bool] = lambda: True  # that nobody else leads by now
        self.view: ViewPublisher | None = None

    def start(self) -> None:
        self._driver.start(self.wake)

    def wake(self) -> None:
        """Something may have to be done: look now rather than at the next tick."""
        self._wake.set()

    def changed(self) -> None:
        """The view changed, and with it perhaps what is to be done."""
        if self.view is not None:
            self.view.touch()
        self.wake()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):  # nothing happened: time did
                async with asyncio.timeout(self._config.tick_seconds):
                    await self._wake.wait()
            self._wake.clear()
            if self.is_active and self.is_sure():
                self.look()

    def look(self) -> None:
        for action in reconcile(self._state(), clock.monotonic()):
            metrics.ACTIONS.labels(type(action).__name__).inc()
            self._do(action)

    def fill(self, view: cluster_pb2.ClusterView) -> None:
        """Write members and deployments as they are now."""
        members = self._roster.members()
        metrics.count_members(members)
        view.members.extend(members)
        deployments = self._catalog.all()
        by_name = {deployment.name: deployment for deployment in deployments}
        for member in view.members:
            self.loads.describe(member, by_name)
            self._show_drain(member)
        view.deployments.extend(deployments)
        if self._config.driver != "none":
            view.sizes.CopyFrom(self.sizes)

    def forget_lives(self, members: list[str]) -> None:
        """Their processes are new or gone: nothing that was under way for them goes on."""
        for id in members:
            self.loads.forget(id)
            self._draining.pop(id, None)

    async def close(self) -> None:
        self.is_active = False
        await background.end(*self._orders)
        await self.loads.close()
        await self._driver.close()

    def _state(self) -> ClusterState:
        now = clock.monotonic()
        return ClusterState(
            deployments=self._catalog.wanted(),
            sizes=by_kind(self.sizes),
            members=self._roster.states(),
            pods=self._pods.merge(self._driver.reports, now, clock.unix_ms()),
            gone_pods=self._pods.gone,
            assignments=self.loads.assignments,
            hearing=self._roster.hearing,
            member_timeout=self._config.member_timeout_seconds,
            draining={id: since for id, (since, _) in self._draining.items()},
            drain_settle=self._config.heartbeat_interval_seconds + DRAIN_SETTLE_SECONDS,
            drain_grace=self._config.drain_grace_seconds,
        )

    @property
    def sizes(self) -> cluster_pb2.ClusterSizes:
        return wanted_sizes(self._catalog.sizes, self._config)

    def _show_drain(self, member: cluster_pb2.Member) -> None:
        """Whoever follows the view sends it nothing new."""
        if member.id in self._draining and member.state == types.LIFECYCLE_STATE_READY:
            member.state = types.LIFECYCLE_STATE_DRAINING
            member.detail = self._draining[member.id][1]

    def _do(self, action: Action) -> None:
        match action:
            case StartPod():
                self._pods.starting(action.name, action.kind, clock.monotonic())
                self._order(self._start_pod(action, self.loads.term))
            case StopPod(name):
                self._pods.stopping(name)
                self._order(self._stop_pod(name, self.loads.term))
            case LoadModel(id, deployment):
                member, wanted = self._roster.get(id), self._catalog.get(deployment)
                if member is not None and wanted is not None:
                    self.loads.load(member, wanted)
            case UnloadModel(id, deployment):
                member = self._roster.get(id)
                if member is not None:
                    self.loads.unload(member, deployment)
            case Drain(id, reason):
                log.info("%s gets no new work: %s", id, reason)
                self._draining[id] = (clock.monotonic(), reason)
                self.changed()
            case Resume(id):
                self._draining.pop(id, None)
                self.changed()
            case MarkDead():
                self._bury(action)

    def _bury(self, action: MarkDead) -> None:
        log.warning("member %s is given up: %s", action.member, action.reason)
        if self._roster.remove(action.member, action.incarnation, is_certain=action.is_certain):
            self.forget_lives([action.member])
            self.changed()

    def _order(self, order: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _start_pod(self, action: StartPod, term: int) -> None:
        log.info("starting %s", action.name)
        try:
            await self._driver.start_pod(action.kind, action.name, _settings(action), term)
        except DeepFlowError as error:
            log.warning("cannot start %s: %s", action.name, error)
            self._pods.start_failed(action.name, clock.monotonic())

    async def _stop_pod(self, name: str, term: int) -> None:
        log.info("stopping %s", name)
        try:
            await self._driver.stop_pod(name, term)
        except DeepFlowError as error:
            log.warning("cannot stop %s: %s", name, error)
        self._pods.stop_ended(name)
        self.wake()


def _settings(action: StartPod) -> dict[str, str]:
    """A head start: what the engine will need for this device is imported before it is asked."""
    return {"preload": "torch"} if action.device == "cpu" else {}
