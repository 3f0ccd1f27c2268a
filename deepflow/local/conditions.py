"""Questions that are asked again and again until the answer is yes."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from deepflow import clock
from deepflow.deployments import is_serving
from deepflow.errors import DeepFlowError
from deepflow.lifecycle import state_word
from deepflow.local import http
from deepflow.local.cluster import ClusterLink
from deepflow.local.progress import ModelChoice, Reporter
from deepflow.local.stack import LOOPBACK
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types


class MemberFailed(Exception):
    """A member says that it cannot do what it is there for."""

    def __init__(self, member: cluster_pb2.Member) -> None:
        super().__init__(f"{member.id} failed: {member.detail or 'it did not say why'}")
        self.member_id = member.id


class Conditions:
    """What they wait for is told to the reporter while they answer no."""

    def __init__(
        self, cluster: ClusterLink, reporter: Reporter, key: str, certificate: Path | None
    ) -> None:
        """`key` is one that the gateways take, `certificate` the one that they show over TLS."""
        self._key = key
        self._certificate = certificate
        self._cluster = cluster
        self._reporter = reporter
        self._began_unix_ms = clock.unix_ms()

    async def listens(self, port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            return False
        writer.close()
        return True

    async def is_ready(self, health_port: int) -> bool:
        with contextlib.suppress(http.NoAnswer):
            status, body = await http.get(f"http://{LOOPBACK}:{health_port}/ready")
            self._reporter.detail(_state_of(body))
            return status == 200
        return False

    async def one_is_ready(self, health_ports: Sequence[int]) -> bool:
        for port in health_ports:
            if await self.is_ready(port):
                return True
        return False

    async def is_up(self, url: str) -> bool:
        with contextlib.suppress(http.NoAnswer):
            answer = await http.get(f"{url}/health", certificate=self._certificate)
            return answer[0] == 200
        return False

    async def has_job_executors(self, count: int) -> bool:
        members = await self._members(types.MEMBER_KIND_JOB_EXECUTOR)
        ready = [m for m in members if m.state == types.LIFECYCLE_STATE_READY]
        return len(ready) >= count

    async def has_loaded(self, model: ModelChoice) -> bool:
        """Raises MemberFailed for a task executor that gave up."""
        members = await self._members(types.MEMBER_KIND_TASK_EXECUTOR)
        for member in members:
            if _has_given_up(member, model.name):
                raise MemberFailed(member)
        ready = [m for m in members if m.deployment == model.name and is_serving(m)]
        return len(ready) >= model.task_executors

    async def serves(self, url: str, model: ModelChoice) -> bool:
        with contextlib.suppress(http.NoAnswer):
            trusted = self._certificate
            if (await http.get(f"{url}/ready", certificate=trusted))[0] != 200:
                return False
            models_url = f"{url}/v1/models"
            status, models = await http.get(models_url, key=self._key, certificate=trusted)
            return status == 200 and any(it["id"] == model.name for it in models["data"])
        return False

    async def _members(self, kind: types.MemberKind.ValueType) -> list[cluster_pb2.Member]:
        """Of this run: the view may still name those of a run before."""
        try:
            view = await self._cluster.view()
        except DeepFlowError:
            return []
        members = [
            member
            for member in view.members
            if member.kind == kind and member.started_unix_ms >= self._began_unix_ms
        ]
        self._reporter.detail(_states_of(members))
        return members


def _has_given_up(member: cluster_pb2.Member, deployment: str) -> bool:
    """A task executor whose load failed is blank again, and says why.

    What somebody else deploys meanwhile may fail without us.
    """
    if member.state == types.LIFECYCLE_STATE_FAILED:
        return member.deployment in ("", deployment)
    is_blank = member.state == types.LIFECYCLE_STATE_BLANK
    return is_blank and bool(member.detail) and member.deployment == deployment


def _state_of(body: object) -> str:
    if not isinstance(body, dict):
        return ""
    return " ".join(str(body[key]) for key in ("state", "detail") if body.get(key))


def _states_of(members: list[cluster_pb2.Member]) -> str:
    words = (f"{m.id} {state_word(m.state)} {m.detail}".strip() for m in members)
    return ", ".join(words) or "starting"
