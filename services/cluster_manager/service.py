"""The gRPC face: every method answers only where this process leads."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deepflow import clock
from deepflow.errors import Conflict, DeadlineExceeded, InvalidRequest, Unavailable
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceServicer
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.deployments.catalog import Catalog
from services.cluster_manager.deployments.request import (
    check_against_facts,
    check_count,
    check_deployment,
    check_name,
    read_facts,
)
from services.cluster_manager.deployments.sizes import with_size, words_of
from services.cluster_manager.deployments.sources import find_source
from services.cluster_manager.manager import Manager
from services.cluster_manager.masters.leadership import Leadership
from services.cluster_manager.masters.roster import Roster
from services.cluster_manager.masters.view import ViewPublisher

log = logging.getLogger(__name__)

FACTS_SECONDS = 15.0

Result = TypeVar("Result")


class ClusterManagerService(ClusterManagerServiceServicer):
    def __init__(
        self,
        config: ClusterManagerConfig,
        *,
        leadership: Leadership,
        roster: Roster,
        catalog: Catalog,
        manager: Manager,
        view: ViewPublisher,
        own_id: str,
    ) -> None:
        self._config = config
        self._leadership = leadership
        self._roster = roster
        self._catalog = catalog
        self._manager = manager
        self._view = view
        self._own_id = own_id
        self._writing = asyncio.Lock()

    async def Register(
        self, request: cluster_pb2.RegisterRequest, context: Any
    ) -> cluster_pb2.RegisterResponse:
        self._leadership.require()
        member, before = request.member, self._roster.get(request.member.id)
        if self._roster.register(member, clock.monotonic()):
            self._note_life(before, member.incarnation)
            self._manager.changed()
        return cluster_pb2.RegisterResponse(
            heartbeat_interval_seconds=self._config.heartbeat_interval_seconds,
            view=self._view.current(),
        )

    async def Deregister(
        self, request: cluster_pb2.DeregisterRequest, context: Any
    ) -> cluster_pb2.DeregisterResponse:
        self._leadership.require()
        if self._roster.deregister(request.id, request.incarnation):
            log.info("member %s left", request.id)
            self._manager.forget_lives([request.id])
            self._manager.changed()
        return cluster_pb2.DeregisterResponse()

    async def Deploy(
        self, request: cluster_pb2.DeployRequest, context: Any
    ) -> cluster_pb2.DeployResponse:
        self._leadership.require()
        asked = cluster_pb2.Deployment()
        asked.CopyFrom(request.deployment)
        check_deployment(asked)
        asked.source = await _reading(asked.source, find_source, self._config.models_folder)
        asked.facts.CopyFrom(await _reading(asked.source, read_facts))
        check_against_facts(asked)
        async with self._writing:
            if request.HasField("expected_revision"):
                self._catalog.require_revision(asked.name, request.expected_revision)
            deployment = await self._write(asked)
        self._manager.loads.retry(deployment.name)
        self._manager.changed()
        return cluster_pb2.DeployResponse(deployment=deployment)

    async def Undeploy(
        self, request: cluster_pb2.UndeployRequest, context: Any
    ) -> cluster_pb2.UndeployResponse:
        self._leadership.require()
        check_name(request.name)
        async with self._writing:
            try:
                await self._catalog.delete(request.name, self._leadership.require())
            except Conflict as error:
                raise self._lost(error) from error
        log.info("%s is undeployed", request.name)
        self._manager.changed()
        return cluster_pb2.UndeployResponse()

    async def Scale(
        self, request: cluster_pb2.ScaleRequest, context: Any
    ) -> cluster_pb2.ScaleResponse:
        self._leadership.require()
        check_count(request.count, "count")
        async with self._writing:
            if request.WhichOneof("target") == "deployment":
                reply = await self._scale_deployment(request.deployment, request.count)
            else:
                reply = await self._scale_kind(request.kind, request.count)
        self._manager.changed()
        return reply

    async def GetView(
        self, request: cluster_pb2.GetViewRequest, context: Any
    ) -> cluster_pb2.GetViewResponse:
        self._leadership.require()
        return cluster_pb2.GetViewResponse(view=self._view.current())

    async def _scale_deployment(self, name: str, count: int) -> cluster_pb2.ScaleResponse:
        asked = cluster_pb2.Deployment()
        asked.CopyFrom(self._catalog.require(check_name(name)))
        asked.replicas = count
        return cluster_pb2.ScaleResponse(deployment=await self._write(asked))

    async def _scale_kind(
        self, kind: types.MemberKind.ValueType, count: int
    ) -> cluster_pb2.ScaleResponse:
        words = words_of(kind)
        if self._config.driver == "none":
            raise InvalidRequest(
                "this cluster manager starts no processes (its driver is none): start or stop"
                f" {words} where they run",
                param="target",
            )
        sizes = with_size(self._catalog.sizes, kind, count)
        try:
            await self._catalog.put_sizes(sizes, self._leadership.require())
        except Conflict as error:
            raise self._lost(error) from error
        log.info("%d %s are wanted", count, words)
        return cluster_pb2.ScaleResponse()

    async def hear(self, beat: events_pb2.Heartbeat) -> None:
        """A heartbeat from the bus."""
        self._leadership.note_term(self._term_shown_by(beat))
        if not self._leadership.token or beat.id == self._own_id:
            return
        before = self._roster.get(beat.id)
        if self._roster.hear(beat, clock.monotonic()):
            self._note_life(before, beat.incarnation)
            self._manager.changed()

    def _term_shown_by(self, beat: events_pb2.Heartbeat) -> int:
        """Of the view that a member goes by; one beyond it where that view cannot be.

        Records restored from an older copy may give our term a second time: then members know
        views of it that we never gave, and would believe none of ours.
        """
        number = (beat.view_term, beat.view_version)
        is_a_twins = beat.view_term == self._leadership.token and number > self._view.number
        return beat.view_term + is_a_twins

    def _note_life(self, before: cluster_pb2.Member | None, incarnation: int) -> None:
        """A new process behind a known id holds nothing of what the old one was told."""
        if before is not None and incarnation > before.incarnation:
            log.info("member %s has a new process", before.id)
            self._manager.forget_lives([before.id])

    async def _write(self, asked: cluster_pb2.Deployment) -> cluster_pb2.Deployment:
        try:
            deployment = await self._catalog.put(asked, self._leadership.require())
        except Conflict as error:
            raise self._lost(error) from error
        log.info("%s is deployed, revision %d", deployment.name, deployment.revision)
        return deployment

    def _lost(self, error: Conflict) -> Unavailable:
        """A fenced write was refused: another cluster manager leads by now."""
        self._leadership.look_soon()
        return Unavailable(
            f"this cluster manager does not lead any more: {error}", reason="not_leader"
        )


async def _reading(source: str, read: Callable[..., Result], *more: Path) -> Result:
    """In a thread: a model folder may lie on a slow disk."""
    try:
        async with asyncio.timeout(FACTS_SECONDS):
            return await asyncio.to_thread(read, source, *more)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"reading {source} took more than {FACTS_SECONDS:.0f} s", param="source"
        ) from error
