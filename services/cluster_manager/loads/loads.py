"""Tells task executors what to hold: one call at a time each, in the background."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace

from deepflow import background, clock
from deepflow.deployments import content_of
from deepflow.errors import DeepFlowError
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2, tasks_pb2
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.cluster_manager import metrics
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.reconcile.state import Assignment, Phase

log = logging.getLogger(__name__)


class Loads:
    """The assignments, moved on by the answers of the task executors."""

    def __init__(self, config: ClusterManagerConfig, on_change: Callable[[], None]) -> None:
        self._config = config
        self._on_change = on_change
        self.term = 0  # of the leadership in whose name task executors are told
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._assignments: dict[str, Assignment] = {}

    @property
    def assignments(self) -> dict[str, Assignment]:
        return dict(self._assignments)

    def describe(
        self, member: cluster_pb2.Member, deployments: Mapping[str, cluster_pb2.Deployment]
    ) -> None:
        """Write on the member what only its assignment tells."""
        it = self._assignments.get(member.id)
        wanted = deployments.get(it.deployment if it is not None else member.deployment)
        if wanted is None:
            return
        if it is None:  # told by a former leader
            member.is_outdated = member.content not in ("", content_of(wanted))
        elif it.content != content_of(wanted):
            member.is_outdated = bool(member.deployment)
        elif it.phase is Phase.FAILED:
            member.deployment = it.deployment
            times = f" ({it.failures} times so far)" if it.failures > 1 else ""
            member.detail = f"cannot load {it.deployment}{times}: {it.reason}"

    def retry(self, deployment: str) -> None:
        """Somebody asked for it again: what failed before may go better now."""
        for id, it in list(self._assignments.items()):
            if it.deployment == deployment and it.phase is Phase.FAILED:
                self.forget(id)

    def load(self, member: cluster_pb2.Member, deployment: cluster_pb2.Deployment) -> None:
        content = content_of(deployment)
        before = self._assignments.get(member.id)
        is_retry = before is not None and before.content == content
        it = Assignment(
            deployment.name,
            content,
            Phase.LOADING,
            clock.monotonic(),
            failures=before.failures if before is not None and is_retry else 0,
        )
        log.info("%s is to hold %s", member.id, deployment.name)
        self._begin(member.id, it, self._load(member, deployment, it))

    def unload(self, member: cluster_pb2.Member, deployment: str) -> None:
        it = Assignment(deployment, "", Phase.UNLOADING, clock.monotonic())
        log.info("%s is to hold nothing", member.id)
        self._begin(member.id, it, self._unload(member, deployment))

    def forget(self, task_executor: str) -> None:
        """Its process is gone, and with it whatever was under way."""
        self._assignments.pop(task_executor, None)
        call = self._calls.pop(task_executor, None)
        if call is not None:
            call.cancel()

    async def close(self) -> None:
        calls = list(self._calls.values())
        for id in list(self._assignments):
            self.forget(id)
        await background.end(*calls)

    def _begin(self, id: str, it: Assignment, call: Coroutine[None, None, None]) -> None:
        self.forget(id)
        self._assignments[id] = it
        task = asyncio.create_task(call)
        self._calls[id] = task

    def _settle(self, id: str, it: Assignment | None) -> None:
        self._calls.pop(id, None)
        self._assignments.pop(id, None)
        if it is not None:
            self._assignments[id] = it
        self._on_change()

    async def _load(
        self, member: cluster_pb2.Member, deployment: cluster_pb2.Deployment, it: Assignment
    ) -> None:
        peer = Peer(member.address, self._config.cluster_token)
        try:
            await peer.call(
                TaskExecutorServiceStub(peer.channel).LoadModel,
                tasks_pb2.LoadModelRequest(
                    deployment=deployment, term=self.term, content=it.content
                ),
                timeout_seconds=self._config.load_timeout_seconds,
            )
        except DeepFlowError as error:
            self._settle(member.id, self._failed(member.id, it, error))
            return
        finally:
            await peer.close()
        now = clock.monotonic()
        metrics.LOAD_SECONDS.labels(deployment.name).set(now - it.changed_at)
        log.info("%s holds %s after %.2f s", member.id, deployment.name, now - it.changed_at)
        self._settle(member.id, replace(it, phase=Phase.LOADED, changed_at=now, failures=0))

    def _failed(self, id: str, it: Assignment, error: DeepFlowError) -> Assignment:
        metrics.LOAD_FAILURES.inc()
        log.error("%s could not load %s: %s", id, it.deployment, error)
        now = clock.monotonic()
        # The exponent is bounded so that the power stays a small number.
        pause = self._config.load_retry_first_seconds * 2 ** min(it.failures, 16)
        return replace(
            it,
            phase=Phase.FAILED,
            changed_at=now,
            failures=it.failures + 1,
            retry_at=now + min(pause, self._config.load_retry_max_seconds),
            reason=error.message,
        )

    async def _unload(self, member: cluster_pb2.Member, deployment: str) -> None:
        peer = Peer(member.address, self._config.cluster_token)
        try:
            await peer.call(
                TaskExecutorServiceStub(peer.channel).UnloadModel,
                tasks_pb2.UnloadModelRequest(
                    deployment=deployment,
                    term=self.term,
                    grace_seconds=self._config.stop_grace_seconds,
                ),
                timeout_seconds=self._config.unload_timeout_seconds,
            )
        except DeepFlowError as error:
            log.error("%s could not unload %s: %s", member.id, deployment, error)
            await asyncio.sleep(self._config.load_retry_first_seconds)
            # It holds something old: the rules will ask again.
            old = Assignment(deployment, "", Phase.LOADED, clock.monotonic())
            self._settle(member.id, old)
            return
        finally:
            await peer.close()
        self._settle(member.id, None)
