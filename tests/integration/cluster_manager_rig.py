"""A cluster manager with a real NATS, a real Redis behind the real kv_store, and fake pods."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepflow.config import MeshServiceConfig
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub
from services.cluster_manager.config import ClusterManagerConfig
from services.cluster_manager.server import ClusterManagerServer
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.integration.fake_cluster import FakeMember, FakeSupervisor
from tests.servers import ServerProcess, free_port, nats_server, redis_server, until

if TYPE_CHECKING:
    from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceAsyncStub

TOKEN = "a token"
SECONDS = 30.0  # of a call that is answered in milliseconds
READY = types.LIFECYCLE_STATE_READY
BLANK = types.LIFECYCLE_STATE_BLANK


@dataclass
class Cluster:
    """All that the tests touch."""

    folder: Path
    nats: ServerProcess
    redis: ServerProcess
    common: MeshServiceConfig
    supervisor: FakeSupervisor
    kv_store: KvStoreServer
    manager: ClusterManagerServer
    peer: Peer
    guests: list[FakeMember] = field(default_factory=list)

    @property
    def stub(self) -> "ClusterManagerServiceAsyncStub":
        return ClusterManagerServiceStub(self.peer.channel)

    async def deploy(
        self,
        name: str = "demo",
        replicas: int = 1,
        device: str = "emulated:zero",
        source: str = "",
        **more: Any,
    ) -> cluster_pb2.Deployment:
        deployment = cluster_pb2.Deployment(
            name=name,
            source=source or str(self.folder / "model"),
            device=device,
            replicas=replicas,
            **more,
        )
        request = cluster_pb2.DeployRequest(deployment=deployment)
        return (await self.peer.call(self.stub.Deploy, request, timeout_seconds=SECONDS)).deployment

    async def undeploy(self, name: str) -> None:
        request = cluster_pb2.UndeployRequest(name=name)
        await self.peer.call(self.stub.Undeploy, request, timeout_seconds=SECONDS)

    async def scale(self, **target: Any) -> cluster_pb2.ScaleResponse:
        request = cluster_pb2.ScaleRequest(**target)
        return await self.peer.call(self.stub.Scale, request, timeout_seconds=SECONDS)

    async def view(self) -> cluster_pb2.ClusterView:
        request = cluster_pb2.GetViewRequest()
        reply = await self.peer.call(
            self.stub.GetView, request, timeout_seconds=SECONDS, idempotent=True
        )
        return reply.view

    async def member(self, id: str) -> cluster_pb2.Member | None:
        return next((m for m in (await self.view()).members if m.id == id), None)

    async def ids(self, state: types.LifecycleState.ValueType = READY) -> set[str]:
        return {m.id for m in (await self.view()).members if m.state == state}

    async def until_ready(self, *names: str) -> None:
        async def ready() -> bool:
            return set(names) <= await self.ids()

        await until(ready, what=f"{names} to be ready")

    async def until_gone(self, name: str) -> None:
        async def gone() -> bool:
            return await self.member(name) is None

        await until(gone, what=f"{name} to be gone")

    async def until_pods(self, *names: str) -> None:
        await until(lambda: set(self.supervisor.rows) == set(names), what=f"the pods {names}")

    async def busy(self, *names: str) -> None:
        """Each has one thing to do, and the leader knows."""
        for name in names:
            self.supervisor.members[name].running = 1

        def is_known() -> bool:
            states = self.manager._manager._roster.states()  # type: ignore[union-attr]
            return all(name in states and states[name].in_flight == 1 for name in names)

        await until(is_known, what="the load to be heard")

    async def join(self, service: str, id: str) -> FakeMember:
        guest = FakeMember(self.common, service, id, 0)
        self.guests.append(guest)
        await guest.start()
        return guest

    async def restart_manager(self, **changes: object) -> None:
        config = self.manager._config.model_copy(update=changes)
        await self.manager.stop()
        self.manager = ClusterManagerServer(config)
        await self.manager.start()

    async def restart_kv_store(self) -> None:
        self.kv_store = KvStoreServer(self.kv_store._config)
        await self.kv_store.start()


def write_model(folder: Path, vocab_size: int = 300) -> None:
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": vocab_size,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))


@contextlib.asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Somebody leads; nothing is deployed."""
    write_model(folder / "model")
    async with (
        nats_server() as nats,
        redis_server(folder) as redis,
        _assembled(folder, nats, redis) as cluster,
    ):
        yield cluster


@contextlib.asynccontextmanager
async def _assembled(
    folder: Path, nats: ServerProcess, redis: ServerProcess
) -> AsyncIterator[Cluster]:
    ports = {"kv": free_port(), "cm": free_port()}
    common = MeshServiceConfig(
        cluster_token=TOKEN,
        nats_url=f"nats://{nats.address}",
        kv_store_address=f"127.0.0.1:{ports['kv']}",
        cluster_manager_address=f"127.0.0.1:{ports['cm']}",
    )
    shared = common.model_dump()
    kv_config = KvStoreConfig(
        **shared
        | {"id": "kv-store", "port": ports["kv"], "redis_url": f"redis://{redis.address}/0"},
        redis_connect_seconds=SECONDS,
        redis_command_seconds=SECONDS,
        initialise=True,
        probe_seconds=0.1,
    )
    supervisor = FakeSupervisor(folder / "supervisor.sock", common)
    cm_config = ClusterManagerConfig(
        **shared | {"id": "cluster-manager", "port": ports["cm"]},
        driver="local",
        models_dir=str(folder / "fetched"),
        supervisor_socket=str(supervisor.path),
        heartbeat_interval_seconds=0.1,
        member_timeout_seconds=1.0,
        lease_seconds=6.0,  # longer than any machine stands still
        load_retry_first_seconds=0.2,
        store_call_seconds=5.0,
        tick_seconds=0.1,
    )
    cluster = Cluster(
        folder=folder,
        nats=nats,
        redis=redis,
        common=common,
        supervisor=supervisor,
        kv_store=KvStoreServer(kv_config),
        manager=ClusterManagerServer(cm_config),
        peer=Peer(f"127.0.0.1:{ports['cm']}", TOKEN),
    )
    try:
        await supervisor.start()
        await cluster.kv_store.start()
        await cluster.manager.start()
        await cluster.view()  # somebody leads
        yield cluster
    finally:
        for guest in cluster.guests:
            await guest.stop()
        await supervisor.close()
        await cluster.peer.close()
        await cluster.manager.stop()
        await cluster.kv_store.stop()
