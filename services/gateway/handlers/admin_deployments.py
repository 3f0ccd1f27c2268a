"""/v1/admin/deployments: which models are served, how, and what came of it."""

from typing import Any

from deepflow.cluster_client import ClusterClient
from deepflow.conflicts import on_the_newest
from deepflow.deployments import READY, describe_deployment, describe_deployments, find
from deepflow.errors import NotFound
from deepflow.v1 import cluster_pb2
from services.gateway.handlers.admin import Desk
from services.gateway.handlers.admin_cluster import asking_the_manager
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange, encode
from services.gateway.schema.admin import read_deployment, read_replicas
from services.gateway.schema.limits import Limits

PATH = "/v1/admin/deployments"
PREFIX = f"{PATH}/"
SCALE = "/scale"

OK, ACCEPTED = 200, 202


class AdminDeployments:
    def __init__(self, desk: Desk, cluster: ClusterClient, limits: Limits) -> None:
        self._desk = desk
        self._cluster = cluster
        self._limits = limits

    async def all(self, exchange: Exchange) -> None:
        with self._desk.place(), asking_the_manager():
            rows = describe_deployments(await self._cluster.settled_view())
            await exchange.respond_json({"object": "list", "data": [_shown(row) for row in rows]})

    async def one(self, exchange: Exchange) -> None:
        """GET shows; PUT makes or changes it, below /scale only its replicas; DELETE undeploys."""
        name = name_in(exchange, PREFIX)
        with self._desk.place(), asking_the_manager():
            if exchange.method == "DELETE":
                await self._undeploy(exchange, name)
            elif exchange.method == "PUT" and name.endswith(SCALE):
                await self._scale(exchange, name.removesuffix(SCALE))
            elif exchange.method == "PUT":
                await self._put(exchange, name)
            else:
                await self._show(exchange, name, OK)

    async def _put(self, exchange: Exchange, name: str) -> None:
        document = await self._desk.body(exchange)
        former, deployed = await self._change(name, document)
        if former is None:
            self._desk.changed(exchange, f"deployed {name} from {deployed.source}")
        elif deployed.revision != former.revision:
            self._desk.changed(exchange, f"changed the deployment {name}: {document}")
        await self._show(exchange, name, ACCEPTED)

    async def _change(
        self, name: str, document: dict[str, Any]
    ) -> tuple[cluster_pb2.Deployment | None, cluster_pb2.Deployment]:
        """What it was and what it is. Fields that are not named keep what others made of them."""

        async def change() -> tuple[cluster_pb2.Deployment | None, cluster_pb2.Deployment]:
            former = find(await self._cluster.settled_view(), name)
            asked = read_deployment(document, self._limits, name, former)
            revision = former.revision if former else 0
            return former, await self._cluster.deploy(asked, revision)

        return await on_the_newest(change)

    async def _scale(self, exchange: Exchange, name: str) -> None:
        replicas = read_replicas(await self._desk.body(exchange), self._limits)
        await self._cluster.scale(name, replicas)
        self._desk.changed(exchange, f"scaled {name} to {replicas}")
        await self._show(exchange, name, ACCEPTED)

    async def _undeploy(self, exchange: Exchange, name: str) -> None:
        await self._cluster.undeploy(name)
        self._desk.changed(exchange, f"undeployed {name}")
        await exchange.respond_json({"object": "deployment", "name": name, "deleted": True})

    async def _show(self, exchange: Exchange, name: str, status_under_way: int) -> None:
        view = await self._cluster.settled_view()
        deployment = find(view, name)
        if deployment is None:
            known = ", ".join(it.name for it in view.deployments) or "none"
            raise NotFound(
                f"no deployment {name[:128]!r}; there are: {known}",
                param="name",
                reason="deployment_not_found",
            )
        row = describe_deployment(deployment, list(view.members))
        status = OK if _is_settled(row) else status_under_way
        await exchange.respond(status, encode(_shown(row)))


def _is_settled(row: dict[str, Any]) -> bool:
    """As many as were asked for serve it, and nobody else holds it any more."""
    return bool(row["state"] == READY and len(row["task_executors"]) == row["replicas"])


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "deployment", **row}
