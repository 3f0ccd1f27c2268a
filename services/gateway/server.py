"""Builds a gateway from its settings and serves it: the one composition root."""

import asyncio
import contextlib
import os

from deepflow import ids
from deepflow.background import end
from deepflow.bus import Bus
from deepflow.cluster_client import ClusterClient
from deepflow.health import HealthServer
from deepflow.lifecycle import Lifecycle
from deepflow.membership import Membership
from deepflow.telemetry import Tracing
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import events_pb2 as events
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.catalog import Catalog
from services.gateway.config import GatewayConfig
from services.gateway.doors import Doors
from services.gateway.handlers import (
    admin_deployments,
    admin_keys,
    admin_members,
    admin_tenants,
    admin_usage,
)
from services.gateway.handlers.admin import Desk
from services.gateway.handlers.context_caches import PATH as CONTEXT_CACHES_PATH
from services.gateway.handlers.context_caches import PREFIX as CONTEXT_CACHES_PREFIX
from services.gateway.handlers.context_caches import ContextCaches
from services.gateway.handlers.embeddings import Embeddings
from services.gateway.handlers.generate import Generation
from services.gateway.handlers.models import PREFIX, Models
from services.gateway.handlers.pages import Pages
from services.gateway.handlers.requests import PREFIX as REQUESTS_PREFIX
from services.gateway.handlers.requests import Requests
from services.gateway.handlers.tokens import Tokens
from services.gateway.handlers.under_way import UnderWay
from services.gateway.http.app import Application, Handler
from services.gateway.http.listener import Listener
from services.gateway.leaving import Leaving
from services.gateway.links.links import Links

MEET_POLL_SECONDS = 0.02


class GatewayServer:
    def __init__(self, config: GatewayConfig) -> None:
        self.lifecycle = Lifecycle()
        self.catalog = Catalog(cluster.ClusterView())
        self.member = cluster.Member(
            id=config.id or ids.new_id("gateway"),
            kind=types.MEMBER_KIND_GATEWAY,
            incarnation=ids.new_incarnation(),
            pid=os.getpid(),
        )
        self._config = config
        self._tracing = Tracing("gateway", config.otlp_endpoint)
        self._bus = Bus(config, self.member.id)
        self._membership: Membership | None = None
        hello = jobs.JobsHello(gateway_id=self.member.id, incarnation=self.member.incarnation)
        self.links = Links(config, hello)
        reporter = f"{self.member.id}.{self.member.incarnation}"
        self.doors = Doors(config, reporter, lambda: self.catalog.gateways)
        self.under_way = UnderWay(config.jobs_max)
        self.generation = Generation(
            config, self.links, lambda: self.catalog, self._tracing, self.doors, self.under_way
        )
        self.embeddings = Embeddings(
            config, self.links, lambda: self.catalog, self._tracing, self.doors, self.under_way
        )
        self.context_caches = ContextCaches(
            config, self.links, lambda: self.catalog, self._tracing, self.doors, self.under_way
        )
        self._cluster = ClusterClient(config.cluster_manager_address, config.cluster_token)
        self.application = Application(self._routes(), self.doors.gate)
        self._listener = Listener(config, self.application)
        self._leaving = Leaving(self._listener, config.linger_seconds)
        self._following: asyncio.Task[None] | None = None
        self._metrics = HealthServer(self.lifecycle)

    @property
    def address(self) -> str:
        return self.member.address

    async def start(self) -> None:
        self._bus.start()
        with self.lifecycle.step("keys"):
            await self.doors.start(self._bus)
        self._listener.take_port()
        with self.lifecycle.step("listen"):
            if self._config.metrics_port:
                await self._metrics.start(self._config.host, self._config.metrics_port)
        self.member.address = f"{self._config.advertised_host}:{self._listener.port}"
        self.member.health_address = self.member.address
        self._membership = Membership(
            self._config,
            self._bus,
            self.lifecycle,
            member=self.member,
            load=self._fill_load,
            on_view=self.adopt,
        )
        await self._membership.start()
        with self.lifecycle.step("meet the cluster"):
            await self._meet()
        await self._listener.start()
        self._following = asyncio.create_task(self._leaving.run())
        self.lifecycle.to(types.LIFECYCLE_STATE_READY)

    async def _meet(self) -> None:
        """A client that is refused asks elsewhere; one that is let in too early gets a 503."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.meet_seconds_max):
                while True:
                    if self._knows_enough:
                        return
                    await asyncio.sleep(MEET_POLL_SECONDS)

    @property
    def _knows_enough(self) -> bool:
        ready = [
            it
            for it in self.catalog.job_executors.values()
            if it.state == types.LIFECYCLE_STATE_READY
        ]
        has_keys = self.doors.ring.is_known or self._config.access == "open"
        return self.catalog.is_known and has_keys and self.links.up_count >= len(ready)

    def adopt(self, view: cluster.ClusterView) -> None:
        """A newer view: other models, other job executors."""
        self.catalog = Catalog(view)
        self.links.follow(self.catalog.job_executors)
        self._leaving.follow(view, self.member)

    async def drain(self) -> None:
        """Nobody new gets in; whoever is in is answered."""
        self.lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
        await end(self._following)
        await asyncio.sleep(self._config.linger_seconds)
        self._listener.refuse()
        await self.under_way.idle.wait()
        await self._listener.wait_until_left()

    async def stop(self) -> None:
        await end(self._following)
        await self._listener.close()
        await self._metrics.close()
        await self.links.close()
        if self._membership is not None:
            await self._membership.close()
        await self._cluster.close()
        await self.doors.close()
        await self._bus.close()
        self._tracing.close()

    def _routes(self) -> dict[str, tuple[str, Handler]]:
        models, pages = Models(lambda: self.catalog), Pages(self.lifecycle)
        tokens = Tokens(self._config, self.links, lambda: self.catalog)
        requests = Requests(self._config, self.links)
        return {
            "/v1/chat/completions": ("POST", self.generation.chat),
            "/v1/completions": ("POST", self.generation.completion),
            "/v1/tokenize": ("POST", tokens.tokenize),
            "/tokenize": ("POST", tokens.tokenize),
            "/v1/detokenize": ("POST", tokens.detokenize),
            "/detokenize": ("POST", tokens.detokenize),
            "/v1/embeddings": ("POST", self.embeddings.create),
            CONTEXT_CACHES_PATH: ("GET POST", self.context_caches.all),
            CONTEXT_CACHES_PREFIX: ("GET DELETE", self.context_caches.one),
            "/v1/models": ("GET", models.list),
            PREFIX: ("GET", models.one),
            REQUESTS_PREFIX: ("GET", requests.one),
            **self._admin_routes(),
            "/health": ("GET", pages.probe),
            "/ready": ("GET", pages.probe),
            "/metrics": ("GET", pages.probe),
            "/docs": ("GET", pages.docs),
            "/openapi.json": ("GET", pages.openapi),
        }

    def _admin_routes(self) -> dict[str, tuple[str, Handler]]:
        desk, records = Desk(self._config), self.doors.records
        keys = admin_keys.AdminKeys(desk, records)
        tenants = admin_tenants.AdminTenants(desk, records)
        usage = admin_usage.AdminUsage(desk, records)
        limits = self._config.limits
        deployments = admin_deployments.AdminDeployments(desk, self._cluster, limits)
        members = admin_members.AdminMembers(desk, self._cluster, limits)
        return {
            admin_keys.PATH: ("GET POST", keys.all),
            admin_keys.PREFIX: ("DELETE", keys.one),
            admin_tenants.PREFIX: ("PUT", tenants.one),
            admin_usage.PATH: ("GET", usage.all),
            admin_deployments.PATH: ("GET", deployments.all),
            admin_deployments.PREFIX: ("GET PUT DELETE", deployments.one),
            admin_members.MEMBERS_PATH: ("GET", members.all),
            admin_members.SERVICES_PATH: ("GET", members.services),
            admin_members.SERVICES_PREFIX: ("GET PUT", members.service),
        }

    def _fill_load(self, beat: events.Heartbeat) -> None:
        beat.load.running = self.under_way.count
