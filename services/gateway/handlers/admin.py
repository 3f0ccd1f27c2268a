"""/v1/admin/*: keys, tenants and usage, for holders of an admin key; the gate has seen to that."""

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

from deepflow.access import names
from deepflow.access.records import AccessRecords
from deepflow.access.wording import describe_key, describe_tenant, describe_usage
from deepflow.errors import InvalidRequest, Unavailable
from services.gateway.config import GatewayConfig
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange
from services.gateway.schema import values
from services.gateway.schema.body import parse_object

KEYS_PATH = "/v1/admin/keys"
KEY_PREFIX = f"{KEYS_PATH}/"
TENANT_PREFIX = "/v1/admin/tenants/"

BODY_BYTES_MAX = 64 * 1024
CALLS_MAX = 8
RETRY_AFTER_SECONDS = 1.0

_KEY_FIELDS = ("tenant", "is_admin", "label")
_TENANT_FIELDS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "allowed_models",
)
_USAGE_WORDS = ("tenant", "key_id")


class Admin:
    def __init__(self, config: GatewayConfig, records: AccessRecords) -> None:
        self._config = config
        self._records = records
        self._running = 0

    async def keys(self, exchange: Exchange) -> None:
        """GET lists; POST makes one, whose secret is shown this once."""
        with self._place():
            if exchange.method == "POST":
                await self._create(exchange)
            else:
                await self._list(exchange)

    async def key(self, exchange: Exchange) -> None:
        """DELETE revokes."""
        with self._place():
            key = await self._records.revoke_key(unquote(name_in(exchange, KEY_PREFIX)))
            await exchange.respond_json(describe_key(key))

    async def tenant(self, exchange: Exchange) -> None:
        """PUT changes the fields that it names; others stay."""
        with self._place():
            name = unquote(name_in(exchange, TENANT_PREFIX))
            body = await self._body(exchange, _TENANT_FIELDS)
            changes = {field: _read_tenant_field(field, value) for field, value in body.items()}
            tenant = await self._records.change_tenant(name, changes)
            await exchange.respond_json(describe_tenant(tenant))

    async def usage(self, exchange: Exchange) -> None:
        words = {name: given[-1] for name, given in parse_qs(exchange.query).items()}
        _refuse_unknown(words, _USAGE_WORDS)
        with self._place():
            rows = await self._records.usage(words.get("tenant", ""), words.get("key_id", ""))
            await exchange.respond_json(
                {"object": "list", "data": [describe_usage(row) for row in rows]}
            )

    async def _create(self, exchange: Exchange) -> None:
        body = await self._body(exchange, _KEY_FIELDS)
        tenant = values.string(body.get("tenant", names.DEFAULT_TENANT), "tenant")
        secret, key = await self._records.create_key(
            tenant,
            is_admin=values.boolean(body.get("is_admin", False), "is_admin"),
            label=values.string(body.get("label", ""), "label"),
        )
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

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One of the few that there are: each call may read all records."""
        if self._running >= CALLS_MAX:
            raise Unavailable(
                "too many calls of admin routes at one time; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _body(self, exchange: Exchange, fields: tuple[str, ...]) -> dict[str, Any]:
        bytes_max = min(BODY_BYTES_MAX, self._config.body_bytes_max)
        body = parse_object(await exchange.read_json_bytes(bytes_max), self._config.json_depth_max)
        _refuse_unknown(body, fields)
        return body


def _refuse_unknown(given: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequest(
                f"{name[:64]!r} is not known here; there are: {', '.join(known)}",
                param=name[:64],
                reason="unknown_field",
            )


def _read_tenant_field(field: str, value: Any) -> Any:
    if field == "allowed_models":
        if not isinstance(value, list):
            raise values.wrong_type(field, "an array of model names", value)
        return [values.string(item, f"{field}[{index}]") for index, item in enumerate(value)]
    maximum = names.TOKENS_MAX if field == "tokens_per_minute" else names.REQUESTS_MAX
    return values.integer(value, field, 0, maximum)
