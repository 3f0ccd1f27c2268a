"""The composition root of a task executor: builds the shell's parts and serves them."""

import logging
import os

import grpc.aio

from deepflow import rpc
from deepflow.bus import Bus
from deepflow.health import HealthServer
from deepflow.ids import new_id, new_incarnation
from deepflow.lifecycle import Lifecycle
from deepflow.membership import Membership
from deepflow.telemetry import Tracing
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cache_pb2_grpc import add_KvIndexServiceServicer_to_server
from deepflow.v1.contexts_pb2_grpc import add_ContextKeeperServiceServicer_to_server
from deepflow.v1.tasks_pb2_grpc import add_TaskExecutorServiceServicer_to_server
from services.task_executor.config import TaskExecutorConfig
from services.task_executor.shell.contexts import ContextDesk
from services.task_executor.shell.engine import EngineProcess
from services.task_executor.shell.kv_events import KvEventPublisher
from services.task_executor.shell.kv_service import KvIndexService
from services.task_executor.shell.kv_store_copy import KvStoreCopy
from services.task_executor.shell.load import LoadMeter
from services.task_executor.shell.metrics import ShellMetrics
from services.task_executor.shell.models import ModelHolder
from services.task_executor.shell.peers import Peers
from services.task_executor.shell.servicer import TaskExecutorServicer
from services.task_executor.shell.tasks import TaskStreams

log = logging.getLogger(__name__)

STOP_SECONDS = 0.5


class TaskExecutorServer:
    """One task executor: the shell in this process, the engine in a child of it."""

    def __init__(self, config: TaskExecutorConfig) -> None:
        self.config = config
        self.id = config.id or new_id("te")
        self.incarnation = new_incarnation()
        self.lifecycle = Lifecycle()
        self._tracing = Tracing("task_executor", config.otlp_endpoint)
        self._health = HealthServer(self.lifecycle)
        self._bus = Bus(config, self.id)
        self._peers = Peers()
        self._meter = LoadMeter()
        self._metrics = ShellMetrics(self._meter)
        self.kv_events = KvEventPublisher(self._bus, self.id, self.incarnation)
        self._kv_copy = KvStoreCopy(
            config, self.kv_events, self.id, seconds=config.kv_index_store_seconds
        )
        self.engine = EngineProcess(config)
        self._contexts = ContextDesk(self.engine, self.lifecycle)
        self.models = ModelHolder(
            config, self.engine, self.lifecycle, wait_idle=self._peers.wait_idle
        )
        self._grpc: grpc.aio.Server | None = None
        self._membership: Membership | None = None
        self.address = ""

    async def start(self) -> None:
        await self._health.start(self.config.host, self.config.health_port)
        self._wire_engine()
        self.engine.start()
        await self._listen()
        self._bus.start()
        self.kv_events.start()
        self._kv_copy.start()
        await self._join()
        self.lifecycle.to(types.LIFECYCLE_STATE_BLANK)

    async def drain(self) -> None:
        """Readiness is false by now, so nothing new is taken; wait for what runs."""
        await self._peers.wait_idle()

    async def stop(self) -> None:
        if self._membership is not None:
            await self._membership.close()
        if self._grpc is not None:
            await self._grpc.stop(STOP_SECONDS)
        await self.models.close()
        await self.engine.close()
        await self._kv_copy.close()
        await self.kv_events.close()
        await self._bus.close()
        await self._health.close()
        self._metrics.close()
        self._tracing.close()

    def _wire_engine(self) -> None:
        """Who hears what of the engine."""
        self.engine.is_busy = lambda: self._peers.num_tasks + self._contexts.num_waiting > 0
        self.engine.on_step.append(self._peers.deliver)
        self.engine.on_step.append(self._contexts.deliver)
        self.engine.on_step.append(self._meter.add)
        self.engine.on_step.append(lambda output: self.kv_events.add(output.kv_changes))
        self.engine.on_lost.append(self._peers.fail_all)
        self.engine.on_lost.append(self._contexts.fail_all)
        self.engine.on_lost.append(lambda _: self.kv_events.cleared())
        self.engine.on_lost.append(lambda _: self._meter.engine_lost())
        self.engine.on_loaded.append(self._meter.loaded)
        self.engine.on_unloaded.append(self._meter.unloaded)
        self.engine.on_loaded.append(lambda _: self.kv_events.cleared())
        self._peers.on_begun.append(self._meter.begun)

    async def _listen(self) -> None:
        streams = TaskStreams(
            self._peers,
            self.engine,
            self.lifecycle,
            self._tracing,
            task_executor_id=self.id,
            incarnation=self.incarnation,
            tasks_max=self.config.max_tasks,
        )
        servicer = TaskExecutorServicer(streams, self.models)
        self._grpc = rpc.new_server(self.config.cluster_token)
        add_TaskExecutorServiceServicer_to_server(servicer, self._grpc)
        add_KvIndexServiceServicer_to_server(KvIndexService(self.kv_events), self._grpc)
        add_ContextKeeperServiceServicer_to_server(self._contexts, self._grpc)
        port = await rpc.listen(self._grpc, self.config.host, self.config.port)
        self.address = f"{self.config.advertised_host}:{port}"

    async def _join(self) -> None:
        member = cluster_pb2.Member(
            id=self.id,
            kind=types.MEMBER_KIND_TASK_EXECUTOR,
            incarnation=self.incarnation,
            address=self.address,
            health_address=f"{self.config.advertised_host}:{self._health.port}",
            pid=os.getpid(),
        )
        self._membership = Membership(
            self.config, self._bus, self.lifecycle, member=member, load=self._fill_load
        )
        self.models.show_on(member)
        await self._membership.start()

    def _fill_load(self, beat: events_pb2.Heartbeat) -> None:
        self._meter.fill(beat.load)
        beat.last_kv_seq = self.kv_events.last_seq
