"""/v1/admin/members and /v1/admin/services: who is there, and how many of whom."""

from typing import Any

from deepflow.cluster_client import ClusterClient
from deepflow.errors import NotFound
from deepflow.members import SCALED_KINDS, describe_member, describe_service, is_settled
from deepflow.membership import kind_word
from deepflow.v1 import types_pb2 as types
from services.gateway.handlers.admin import Desk, query_words
from services.gateway.handlers.admin_cluster import asking_the_manager
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange, encode
from services.gateway.schema import values
from services.gateway.schema.admin import read_count
from services.gateway.schema.limits import Limits

MEMBERS_PATH = "/v1/admin/members"
SERVICES_PATH = "/v1/admin/services"
SERVICES_PREFIX = f"{SERVICES_PATH}/"

KINDS = tuple(kind_word(kind) for kind in types.MemberKind.values() if kind)


class AdminMembers:
    def __init__(self, desk: Desk, cluster: ClusterClient, limits: Limits) -> None:
        self._desk = desk
        self._cluster = cluster
        self._limits = limits

    async def all(self, exchange: Exchange) -> None:
        """?kind=job_executor for those alone."""
        words = query_words(exchange, ("kind",))
        kind = values.word_of(words["kind"], "kind", KINDS) if "kind" in words else ""
        with self._desk.place(), asking_the_manager():
            view = await self._cluster.settled_view()
            rows = [{"object": "member", **describe_member(it)} for it in view.members]
            await exchange.respond_json(
                {
                    "object": "list",
                    "data": [row for row in rows if kind in ("", row["kind"])],
                    "term": view.term,
                    "version": view.version,
                }
            )

    async def services(self, exchange: Exchange) -> None:
        with self._desk.place(), asking_the_manager():
            view = await self._cluster.settled_view()
            rows = [_shown(describe_service(view, name)) for name in SCALED_KINDS]
            await exchange.respond_json({"object": "list", "data": rows})

    async def service(self, exchange: Exchange) -> None:
        """PUT says how many there be; 202 until there are."""
        name = name_in(exchange, SERVICES_PREFIX)
        if name not in SCALED_KINDS:
            raise NotFound(
                f"{name[:64]!r} is not scaled by its number; there are: {', '.join(SCALED_KINDS)}",
                param="kind",
                reason="service_not_found",
            )
        with self._desk.place(), asking_the_manager():
            is_change = exchange.method == "PUT"
            if is_change:
                count = read_count(await self._desk.body(exchange), self._limits)
                await self._cluster.scale_kind(SCALED_KINDS[name], count)
                self._desk.changed(exchange, f"scaled {name} to {count}")
            row = describe_service(await self._cluster.settled_view(), name)
            status = 202 if is_change and not is_settled(row) else 200
            await exchange.respond(status, encode(_shown(row)))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "service", **row}
