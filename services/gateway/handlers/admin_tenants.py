"""/v1/admin/tenants: what each may use."""

from typing import Any

from deepflow.access import names
from deepflow.access.records import AccessRecords
from deepflow.access.wording import describe_tenant
from services.gateway.handlers.admin import Desk, refuse_unknown
from services.gateway.http.app import name_in
from services.gateway.http.exchange import Exchange
from services.gateway.schema import values

PREFIX = "/v1/admin/tenants/"

_FIELDS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "allowed_models",
    "weight",
)
# What takes a limit away is said where somebody tries null for it.
_LIMIT_WORDS = "an integer; 0 is no limit, and a field that is left out stays as it is"
_WORDS = {
    "allowed_models": "an array of model names; [] is every model, and left out it stays as it is",
    "weight": f"a number from {names.WEIGHT_MIN:g} to {names.WEIGHT_MAX:g}; 1 is the usual",
}


class AdminTenants:
    def __init__(self, desk: Desk, records: AccessRecords) -> None:
        self._desk = desk
        self._records = records

    async def one(self, exchange: Exchange) -> None:
        """PUT changes the fields that it names; others stay."""
        with self._desk.place():
            name = name_in(exchange, PREFIX)
            body = await self._desk.body(exchange)
            refuse_unknown(body, _FIELDS)
            changes = {field: _read(field, value) for field, value in body.items()}
            tenant = await self._records.change_tenant(name, changes)
            self._desk.changed(exchange, f"changed the tenant {tenant.name}: {changes}")
            await exchange.respond_json(describe_tenant(tenant))


def _read(field: str, value: Any) -> Any:
    if value is None:
        raise values.wrong_type(field, _WORDS.get(field, _LIMIT_WORDS), value)
    if field == "allowed_models":
        if not isinstance(value, list):
            raise values.wrong_type(field, "an array of model names", value)
        return [values.string(item, f"{field}[{index}]") for index, item in enumerate(value)]
    if field == "weight":
        return values.number(value, field, names.WEIGHT_MIN, names.WEIGHT_MAX)
    maximum = names.TOKENS_MAX if field == "tokens_per_minute" else names.REQUESTS_MAX
    return values.integer(value, field, 0, maximum)
