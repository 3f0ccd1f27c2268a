"""/v1/admin/keys: made, shown and revoked."""

from deepflow.access import names
from deepflow.access.records import AccessRecords
from deepflow.access.wording import describe_key, describe_tenant
from services.gateway.handlers.admin import Desk, refuse_unknown
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange
from services.gateway.schema import values

PATH = "/v1/admin/keys"
PREFIX = f"{PATH}/"

_FIELDS = ("tenant", "is_admin", "label")


class AdminKeys:
    def __init__(self, desk: Desk, records: AccessRecords) -> None:
        self._desk = desk
        self._records = records

    async def all(self, exchange: Exchange) -> None:
        """GET lists; POST makes one, whose secret is shown this once."""
        with self._desk.place():
            if exchange.method == "POST":
                await self._create(exchange)
            else:
                await self._list(exchange)

    async def one(self, exchange: Exchange) -> None:
        """DELETE revokes."""
        with self._desk.place():
            key = await self._records.revoke_key(name_in(exchange, PREFIX))
            self._desk.changed(exchange, f"revoked the key {key.id} of {key.tenant}")
            await exchange.respond_json(describe_key(key))

    async def _create(self, exchange: Exchange) -> None:
        body = await self._desk.body(exchange)
        refuse_unknown(body, _FIELDS)
        tenant = values.string(body.get("tenant", names.DEFAULT_TENANT), "tenant")
        secret, key = await self._records.create_key(
            tenant,
            is_admin=values.boolean(body.get("is_admin", False), "is_admin"),
            label=values.string(body.get("label", ""), "label"),
        )
        kind = "admin key" if key.is_admin else "key"
        self._desk.changed(exchange, f"made the {kind} {key.id} of {key.tenant}")
        await exchange.respond_json(describe_key(key) | {"key": secret})

    async def _list(self, exchange: Exchange) -> None:
        known = await self._records.read()
        await exchange.respond_json(
            {
                "object": "list",
                "data": [describe_key(key) for key in known.keys],
                "tenants": [describe_tenant(tenant) for tenant in known.tenants],
            }
        )
