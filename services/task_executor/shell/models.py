"""Which model this task executor holds, and how it comes to hold it."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from deepflow import background
from deepflow.deployments import content_of
from deepflow.errors import Conflict, DeepFlowError, InvalidRequest, Unavailable
from deepflow.lifecycle import Lifecycle
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.flowserve.messages import Load, LoadFailed
from services.task_executor.shell.engine import EngineProcess
from services.task_executor.shell.translate import to_capabilities, to_load

log = logging.getLogger(__name__)


class ModelHolder:
    """Loads and unloads through the engine; loads again by itself after an engine was lost."""

    def __init__(
        self,
        config: TaskExecutorConfig,
        engine: EngineProcess,
        lifecycle: Lifecycle,
        *,
        wait_idle: Callable[[], Awaitable[None]],
    ) -> None:
        """`wait_idle` returns once no task is left."""
        self._wait_idle = wait_idle
        self._term = 0
        self._config = config
        self._engine = engine
        self._lifecycle = lifecycle
        self._deployment: cluster_pb2.Deployment | None = None
        self._capabilities = cluster_pb2.Capabilities()
        self._member = cluster_pb2.Member()
        self._loading: asyncio.Task[cluster_pb2.Capabilities] | None = None
        self._unloading: asyncio.Task[None] | None = None
        engine.on_lost.append(self._engine_lost)
        engine.on_progress.append(self._tell_step)

    def show_on(self, member: cluster_pb2.Member) -> None:
        """Keep this record's deployment and capabilities true from now on."""
        self._member = member

    def check_term(self, term: int) -> None:
        """A leader that was replaced and has not noticed decides nothing here any more."""
        if term < self._term:
            raise Conflict(
                f"term {term} is over: the cluster manager of term {self._term} leads",
                reason="stale_term",
            )
        self._term = term

    async def load(
        self, deployment: cluster_pb2.Deployment, content: str = ""
    ) -> cluster_pb2.Capabilities:
        """Hold `deployment`; the same one twice is one load. Raises what made it fail."""
        if self._lifecycle.is_draining:
            raise Unavailable("this task executor is draining")
        held = self._deployment
        if held is not None and held.name != deployment.name:
            raise Conflict(f"this task executor holds {held.name!r}; unload it first")
        if held is not None and content_of(held) == content_of(deployment):
            self._member.content = content
            if self._loading is not None:
                return await asyncio.shield(self._loading)
            return self._capabilities
        self._deployment = deployment
        self._member.content = content
        self._loading = asyncio.create_task(self._load(deployment))
        return await asyncio.shield(self._loading)

    async def unload(self, name: str, grace_seconds: float = 0.0) -> None:
        """Drop the model once its tasks have ended; unknown names are fine, so that a retry is."""
        if self._deployment is None or self._deployment.name != name:
            return
        if self._unloading is None:
            self._unloading = asyncio.create_task(self._unload(grace_seconds))
        # It goes on where the caller is gone: half unloaded is no state to stay in.
        await asyncio.shield(self._unloading)

    async def _unload(self, grace_seconds: float) -> None:
        try:
            if self._loading is None:
                # From here on every new task is refused; its job executor looks elsewhere.
                self._lifecycle.to(types.LIFECYCLE_STATE_LOADING, "ends its tasks to unload")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_seconds):
                        await self._wait_idle()
            self._forget()
            await self._engine.unload()
            self._lifecycle.to(types.LIFECYCLE_STATE_BLANK)
        finally:
            self._unloading = None

    async def close(self) -> None:
        await background.end(self._loading, self._unloading)

    async def _load(self, deployment: cluster_pb2.Deployment) -> cluster_pb2.Capabilities:
        self._member.deployment = deployment.name
        self._lifecycle.to(types.LIFECYCLE_STATE_LOADING)
        try:
            async with asyncio.timeout(self._config.load_timeout_seconds):
                loaded = await self._engine.load(self._to_load(deployment))
            if isinstance(loaded, LoadFailed):
                raise InvalidRequest(loaded.message, param="source", reason="load_failed")
        except (TimeoutError, DeepFlowError) as error:
            self._forget()
            if isinstance(error, TimeoutError):
                self._engine.replace()  # it would be busy with this load for ever
            self._lifecycle.to(types.LIFECYCLE_STATE_BLANK, f"load failed: {error}")
            raise
        finally:
            self._loading = None
        self._capabilities = to_capabilities(
            loaded, deployment.device, self._lifecycle.step_seconds | self._engine.step_seconds
        )
        self._member.capabilities.CopyFrom(self._capabilities)
        self._lifecycle.to(types.LIFECYCLE_STATE_READY)
        return self._capabilities

    def _to_load(self, deployment: cluster_pb2.Deployment) -> Load:
        return to_load(deployment, self._config.engine_settings, self._config.kv_disk_folder)

    def _tell_step(self, step: str) -> None:
        """Whoever waits for the model sees how far it is."""
        if self._lifecycle.state == types.LIFECYCLE_STATE_LOADING:
            self._lifecycle.to(types.LIFECYCLE_STATE_LOADING, step)

    def _forget(self) -> None:
        self._deployment = None
        self._member.deployment = ""
        self._member.content = ""
        self._member.ClearField("capabilities")

    def _engine_lost(self, error: DeepFlowError) -> None:
        """A new engine is on its way: give it the model that the old one held."""
        if self._deployment is None or self._loading is not None or self._lifecycle.is_draining:
            return
        self._loading = asyncio.create_task(self._load(self._deployment))
        self._loading.add_done_callback(_log_failure)


def _log_failure(task: "asyncio.Task[cluster_pb2.Capabilities]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("cannot load the model again: %s", error)
