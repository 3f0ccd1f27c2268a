"""What is not about models: health, metrics and the description of the API."""

from deepflow import health
from deepflow.lifecycle import Lifecycle
from services.gateway.http.exchange import Exchange
from services.gateway.schema.docs import docs_page
from services.gateway.schema.openapi import openapi_document

HTML = b"text/html; charset=utf-8"


class Pages:
    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def probe(self, exchange: Exchange) -> None:
        """/health, /ready and /metrics, as every service answers them."""
        status, kind, body = health.route(f"GET {exchange.path} HTTP/1.1", self._lifecycle)
        await exchange.respond(int(status.split(" ", 1)[0]), body, kind.encode())

    async def docs(self, exchange: Exchange) -> None:
        await exchange.respond(200, docs_page().encode(), HTML)

    async def openapi(self, exchange: Exchange) -> None:
        await exchange.respond_json(openapi_document())
