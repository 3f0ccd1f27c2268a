"""Gateways before one real kv_store on a real Redis, with a real NATS."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deepflow.access.records import AccessRecords
from deepflow.rpc import Peer
from services.kv_store.config import KvStoreConfig
from services.kv_store.server import KvStoreServer
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    TOKEN,
    FakeJobExecutor,
    GatewayStand,
    chat,
    gateway_stand,
)
from tests.servers import ServerProcess, free_port, nats_server, redis_server, until


@dataclass
class Town:
    """One store and what it takes to put gateways before it."""

    redis: ServerProcess
    nats: ServerProcess
    store: KvStoreServer
    records: AccessRecords

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "access": "keys",
            "kv_store_address": f"127.0.0.1:{self.store.port}",
            "nats_url": self.nats.url,
        }

    @contextlib.asynccontextmanager
    async def gateway(self) -> AsyncIterator["Door"]:
        async with gateway_stand(FakeJobExecutor(), **self.settings) as stand:
            await until(lambda: stand.gateway.doors.ring.is_known, what="the keys are read")
            async with httpx.AsyncClient(base_url=stand.url, timeout=DEADLINE_SECONDS) as http:
                yield Door(stand, http)


@dataclass
class Door:
    stand: GatewayStand
    http: httpx.AsyncClient

    async def ask(self, key: str = "", **body: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat(**body), headers=bearer(key))

    async def status(self, key: str = "") -> int:
        return (await self.ask(key)).status_code


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def code(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["code"])


@contextlib.asynccontextmanager
async def running_town(tmp_path: Path) -> AsyncIterator[Town]:
    async with redis_server(tmp_path) as redis, nats_server() as nats:
        config = KvStoreConfig(
            port=0,
            cluster_token=TOKEN,
            redis_url=redis.url,
            redis_connect_seconds=DEADLINE_SECONDS,
            redis_command_seconds=DEADLINE_SECONDS,
            initialise=True,
            probe_seconds=0.05,
            nats_url=nats.url,
            cluster_manager_address=f"127.0.0.1:{free_port()}",
        )
        store = KvStoreServer(config)
        await store.start()
        peer = Peer(f"127.0.0.1:{store.port}", TOKEN)
        try:
            yield Town(redis, nats, store, AccessRecords(peer))
        finally:
            await peer.close()
            await store.stop()


async def opens(door: Door, key: str) -> bool:
    """Known, and no longer anybody's door."""
    return await door.status() == 401 and await door.status(key) == 200


def knows(door: Door, *keys: str) -> bool:
    """Each of them: they come to a gateway one by one."""
    ring = door.stand.gateway.doors.ring
    return all(ring.find(key) is not None for key in keys)
