"""GET /v1/models: the deployments of the view."""

from collections.abc import Callable
from typing import Any

from deepflow.v1 import cluster_pb2 as cluster
from services.gateway.catalog import Catalog
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange

PREFIX = "/v1/models/"


class Models:
    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog

    async def list(self, exchange: Exchange) -> None:
        catalog = self._catalog()
        catalog.require_view()
        models = [
            describe(deployment)
            for deployment in catalog.deployments.values()
            if exchange.caller.may_use(deployment.name)
        ]
        await exchange.respond_json({"object": "list", "data": models})

    async def one(self, exchange: Exchange) -> None:
        name = name_in(exchange, PREFIX)
        exchange.caller.require_model(name)
        deployment = self._catalog().deployment(name)
        await exchange.respond_json(describe(deployment))


def describe(deployment: cluster.Deployment) -> dict[str, Any]:
    return {
        "id": deployment.name,
        "object": "model",
        "created": deployment.created_unix_ms // 1000,
        "owned_by": "deepflow",
    }
