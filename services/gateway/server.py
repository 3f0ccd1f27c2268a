"""Builds a gateway from its settings and serves it: the one composition root."""

import os

from deepflow import ids
from deepflow.bus import Bus
from deepflow.lifecycle import Lifecycle
from deepflow.membership import Membership
from deepflow.telemetry import Tracing
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import events_pb2 as events
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.catalog import Catalog
from services.gateway.config import GatewayConfig
from services.gateway.handlers.embeddings import Embeddings
from services.gateway.handlers.generate import Generation
from services.gateway.handlers.models import PREFIX, Models
from services.gateway.handlers.pages import Pages
from services.gateway.handlers.tokens import Tokens
from services.gateway.http.app import Application, Handler
from services.gateway.http.listener import Listener
from services.gateway.links.links import Links


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
        self.generation = Generation(
            config, self.lifecycle, self.links, lambda: self.catalog, self._tracing
        )
        self.embeddings = Embeddings(
            config, self.lifecycle, self.links, lambda: self.catalog, self._tracing
        )
        self.application = Application(self._routes())
        self._listener = Listener(config, self.application)

    @property
    def address(self) -> str:
        return self.member.address

    async def start(self) -> None:
        with self.lifecycle.step("listen"):
            await self._listener.start()
        self.member.address = f"{self._config.advertised_host}:{self._listener.port}"
        self.member.health_address = self.member.address
        self.lifecycle.to(types.LIFECYCLE_STATE_READY)
        self._membership = Membership(
            self._config,
            self._bus,
            self.lifecycle,
            member=self.member,
            load=self._fill_load,
            on_view=self.adopt,
        )
        self._bus.start()
        await self._membership.start()

    def adopt(self, view: cluster.ClusterView) -> None:
        """A newer view: other models, other job executors."""
        self.catalog = Catalog(view)
        self.links.follow(self.catalog.job_executors)

    async def drain(self) -> None:
        self.lifecycle.to(types.LIFECYCLE_STATE_DRAINING)
        await self.generation.idle.wait()
        await self.embeddings.idle.wait()

    async def stop(self) -> None:
        await self._listener.close()
        await self.links.close()
        if self._membership is not None:
            await self._membership.close()
        await self._bus.close()
        self._tracing.close()

    def _routes(self) -> dict[str, tuple[str, Handler]]:
        models, pages = Models(lambda: self.catalog), Pages(self.lifecycle)
        tokens = Tokens(self._config, self.links, lambda: self.catalog)
        return {
            "/v1/chat/completions": ("POST", self.generation.chat),
            "/v1/completions": ("POST", self.generation.completion),
            "/v1/tokenize": ("POST", tokens.tokenize),
            "/tokenize": ("POST", tokens.tokenize),
            "/v1/detokenize": ("POST", tokens.detokenize),
            "/detokenize": ("POST", tokens.detokenize),
            "/v1/embeddings": ("POST", self.embeddings.create),
            "/v1/models": ("GET", models.list),
            PREFIX: ("GET", models.one),
            "/health": ("GET", pages.probe),
            "/ready": ("GET", pages.probe),
            "/metrics": ("GET", pages.probe),
            "/docs": ("GET", pages.docs),
            "/openapi.json": ("GET", pages.openapi),
        }

    def _fill_load(self, beat: events.Heartbeat) -> None:
        beat.load.running = self.generation.job_count + self.embeddings.job_count
