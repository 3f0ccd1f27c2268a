"""A supervisor and members for tests of the cluster manager: fake inside, real on every wire."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import grpc.aio

from deepflow import clock, rpc
from deepflow.bus import Bus
from deepflow.config import MeshServiceConfig
from deepflow.errors import Conflict, Internal
from deepflow.lifecycle import Lifecycle
from deepflow.membership import Membership
from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.tasks_pb2_grpc import (
    TaskExecutorServiceServicer,
    add_TaskExecutorServiceServicer_to_server,
)

KINDS = {
    "job_executor": types.MEMBER_KIND_JOB_EXECUTOR,
    "task_executor": types.MEMBER_KIND_TASK_EXECUTOR,
    "gateway": types.MEMBER_KIND_GATEWAY,
}
_pids = itertools.count(1_000_000)


class FakeTaskExecutor(TaskExecutorServiceServicer):
    """Holds a model by saying so."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle
        self.member = cluster_pb2.Member()
        self.loads: list[cluster_pb2.Deployment] = []
        self.terms: list[int] = []
        self.loads_to_fail = 0
        self.bad_models: set[str] = set()  # sources that never load

    async def LoadModel(
        self, request: tasks_pb2.LoadModelRequest, context: Any
    ) -> tasks_pb2.LoadModelResponse:
        if self.member.deployment not in ("", request.deployment.name):
            raise Conflict(f"{self.member.id} holds {self.member.deployment}")
        self.loads.append(request.deployment)
        self.terms.append(request.term)
        self.member.deployment = request.deployment.name
        self.member.content = request.content
        self.lifecycle.to(types.LIFECYCLE_STATE_LOADING)
        if self.loads_to_fail or request.deployment.source in self.bad_models:
            self.loads_to_fail = max(0, self.loads_to_fail - 1)
            self.member.deployment = self.member.content = ""
            self.lifecycle.to(types.LIFECYCLE_STATE_BLANK)
            raise Internal("the weights are bent")
        self.lifecycle.to(types.LIFECYCLE_STATE_READY)
        return tasks_pb2.LoadModelResponse()

    async def UnloadModel(
        self, request: tasks_pb2.UnloadModelRequest, context: Any
    ) -> tasks_pb2.UnloadModelResponse:
        self.member.deployment = self.member.content = ""
        self.lifecycle.to(types.LIFECYCLE_STATE_BLANK)
        return tasks_pb2.UnloadModelResponse()

    def Tasks(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError


class FakeMember:
    """One process that is not one: its registration, heartbeats and gRPC server are real."""

    def __init__(self, config: MeshServiceConfig, service: str, id: str, pid: int) -> None:
        self.id, self.pid, self.running = id, pid, 0
        self.config, self.service = config, service
        self.lifecycle = Lifecycle()
        self.task_executor = FakeTaskExecutor(self.lifecycle)
        self.bus = Bus(config, id)
        self.membership: Membership | None = None
        self._grpc: grpc.aio.Server | None = None

    @property
    def view(self) -> cluster_pb2.ClusterView:
        assert self.membership is not None
        return self.membership.view

    async def start(self) -> None:
        self._grpc = rpc.new_server(self.config.cluster_token)
        add_TaskExecutorServiceServicer_to_server(self.task_executor, self._grpc)
        port = await rpc.listen(self._grpc, "127.0.0.1", 0)
        member = cluster_pb2.Member(
            id=self.id, kind=KINDS[self.service], address=f"127.0.0.1:{port}", pid=self.pid
        )
        self.task_executor.member = member
        is_task_executor = self.service == "task_executor"
        self.lifecycle.to(
            types.LIFECYCLE_STATE_BLANK if is_task_executor else types.LIFECYCLE_STATE_READY
        )
        self.bus.start()
        self.membership = Membership(
            self.config, self.bus, self.lifecycle, member=member, load=self._fill
        )
        await self.membership.start()

    async def stop(self) -> None:
        """With a goodbye."""
        if self.membership is not None:
            await self.membership.close()
        await self._close()

    async def vanish(self) -> None:
        """As SIGKILL would have it: nobody is told."""
        assert self.membership is not None
        for task in self.membership._tasks:
            task.cancel()
        await self.membership._manager.close()
        await self.membership._store.close()
        await self._close()

    async def _close(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop(0)
        await self.bus.close()

    def _fill(self, beat: events_pb2.Heartbeat) -> None:
        beat.load.running = self.running


class FakeSupervisor:
    """Speaks the supervisor's lines; its processes are FakeMembers."""

    def __init__(self, path: Path, config: MeshServiceConfig) -> None:
        self.path, self.config = path, config
        self.members: dict[str, FakeMember] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.started: list[str] = []
        self.settings: dict[str, dict[str, str]] = {}
        self.loads_to_fail = 0
        self.bad_models: set[str] = set()
        self._server: asyncio.Server | None = None
        self._watchers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._orders: set[asyncio.Task[dict[str, Any] | None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.gather(*self._orders)
        await asyncio.gather(*(member.stop() for member in self.members.values()))

    async def kill(self, name: str) -> None:
        """The process dies; the supervisor says so and waits with the next start."""
        await self.members.pop(name).vanish()
        self._set(name, pid=None, state="restarting")

    async def revive(self, name: str) -> None:
        await self._spawn(name, self.rows[name]["service"])

    def _set(self, name: str, **fields: Any) -> None:
        self.rows[name] |= fields | {"since_unix_ms": clock.unix_ms()}
        self._tell()

    def _tell(self) -> None:
        line = json.dumps({"ok": True, "processes": list(self.rows.values())}).encode() + b"\n"
        for writer in self._watchers:
            writer.write(line)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while line := await reader.readline():
                reply = await self._obey(json.loads(line), writer)
                if reply is not None:
                    writer.write(json.dumps(reply).encode() + b"\n")
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            self._watchers.discard(writer)
            writer.close()

    async def _obey(
        self, request: dict[str, Any], writer: asyncio.StreamWriter
    ) -> dict[str, Any] | None:
        """Whoever hangs up stops no order: half a member would be nobody's to end."""
        order = asyncio.create_task(self._answer(request, writer))
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)
        return await asyncio.shield(order)

    async def _answer(
        self, request: dict[str, Any], writer: asyncio.StreamWriter
    ) -> dict[str, Any] | None:
        match request:
            case {"op": "watch"}:
                self._watchers.add(writer)
                self._tell()
                return None
            case {"op": "start", "service": service, "name": name, "settings": settings}:
                self.settings[name] = settings
                if name not in self.rows:
                    self.started.append(name)
                    await self._spawn(name, service)
                return {"ok": True}
            case {"op": "stop", "name": name} if name in self.rows:
                self._set(name, state="stopping")
                if name in self.members:
                    await self.members.pop(name).stop()
                del self.rows[name]
                self._tell()
                return {"ok": True}
        return {"ok": False, "error": f"cannot do {request}"}

    async def _spawn(self, name: str, service: str) -> None:
        pid = next(_pids)
        row = {"name": name, "service": service, "restarts": 0, "exit_code": None, "log_file": ""}
        self.rows[name] = row
        self._set(name, pid=pid, state="running")
        member = FakeMember(self.config, service, name, pid)
        member.task_executor.loads_to_fail = self.loads_to_fail
        member.task_executor.bad_models = self.bad_models
        self.members[name] = member
        await member.start()
