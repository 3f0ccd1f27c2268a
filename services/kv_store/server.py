"""Builds the kv_store and serves it."""

import asyncio
import os

import grpc.aio

from deepflow import rpc
from deepflow.background import end
from deepflow.bus import Bus
from deepflow.health import HealthServer
from deepflow.ids import new_id
from deepflow.lifecycle import Lifecycle
from deepflow.membership import Membership
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cache_pb2_grpc import add_DisposableStoreServiceServicer_to_server
from deepflow.v1.store_pb2_grpc import (
    add_CounterServiceServicer_to_server,
    add_RecordStoreServiceServicer_to_server,
)
from services.kv_store.announce import Announcer
from services.kv_store.config import KvStoreConfig
from services.kv_store.counters.limits import Limits
from services.kv_store.counters.service import CounterService
from services.kv_store.counters.usage import UsageSums
from services.kv_store.disposable.disposables import Disposables
from services.kv_store.disposable.service import DisposableStoreService
from services.kv_store.leases.leases import Leases
from services.kv_store.probe import Probe
from services.kv_store.records.generation import Generation
from services.kv_store.records.records import Records
from services.kv_store.redis_link import RedisLink
from services.kv_store.service import RecordStoreService

STOP_SECONDS = 1.0


class KvStoreServer:
    def __init__(self, config: KvStoreConfig) -> None:
        self.lifecycle = Lifecycle()
        self.port = 0
        self._config = config
        self._health = HealthServer(self.lifecycle)
        self._redis = RedisLink(config)
        self._disposable_redis = RedisLink(
            config.model_copy(update={"redis_url": config.disposable_redis_url or config.redis_url})
        )
        self._probe = Probe(
            self.lifecycle,
            self._redis,
            Generation(self._redis, may_initialise=config.initialise),
            config.probe_seconds,
        )
        self._bus = Bus(config, "kv_store")
        self._grpc: grpc.aio.Server | None = None
        self._membership: Membership | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def health_port(self) -> int:
        return self._health.port

    async def start(self) -> None:
        config = self._config
        await self._health.start(config.host, config.health_port)
        records = Records(
            self._redis,
            value_bytes_max=config.value_bytes_max,
            list_bytes_max=config.list_bytes_max,
        )
        service = RecordStoreService(records, Leases(self._redis), Announcer(self._bus).written)
        self._grpc = rpc.new_server(config.cluster_token)
        add_RecordStoreServiceServicer_to_server(service, self._grpc)
        add_DisposableStoreServiceServicer_to_server(
            DisposableStoreService(self._disposables()), self._grpc
        )
        counters = CounterService(Limits(self._redis), UsageSums(self._redis))
        add_CounterServiceServicer_to_server(counters, self._grpc)
        await self._probe.look()
        self.port = await rpc.listen(self._grpc, config.host, config.port)
        self._probing = asyncio.create_task(self._probe.run())
        self._bus.start()
        self._membership = Membership(
            config, self._bus, self.lifecycle, member=self._member(), load=_no_load
        )
        await self._membership.start()

    async def drain(self) -> None:
        """Every call is short: stopping the server lets those in progress end."""

    async def stop(self) -> None:
        await end(self._probing)
        if self._membership is not None:
            await self._membership.close()
        await self._bus.close()
        if self._grpc is not None:
            await self._grpc.stop(STOP_SECONDS)
        await self._redis.close()
        await self._disposable_redis.close()
        await self._health.close()

    def _disposables(self) -> Disposables:
        config = self._config
        return Disposables(
            self._disposable_redis,
            value_bytes_max=config.value_bytes_max,
            bytes_max=config.disposable_bytes_max,
            page_bytes_max=config.list_bytes_max,
        )

    def _member(self) -> cluster_pb2.Member:
        host = self._config.advertised_host
        return cluster_pb2.Member(
            id=self._config.id or new_id("kv_store"),
            kind=types.MEMBER_KIND_KV_STORE,
            address=f"{host}:{self.port}",
            health_address=f"{host}:{self._health.port}",
            pid=os.getpid(),
        )


def _no_load(_beat: events_pb2.Heartbeat) -> None:
    """A kv_store holds no work between calls."""
