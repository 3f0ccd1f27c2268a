"""/v1/admin/usage: what was used, by tenant, key and model."""

from deepflow.access.records import AccessRecords
from deepflow.access.wording import describe_usage
from services.gateway.handlers.admin import Desk, query_words
from services.gateway.http.exchange import Exchange

PATH = "/v1/admin/usage"

_WORDS = ("tenant", "key_id")


class AdminUsage:
    def __init__(self, desk: Desk, records: AccessRecords) -> None:
        self._desk = desk
        self._records = records

    async def all(self, exchange: Exchange) -> None:
        words = query_words(exchange, _WORDS)
        with self._desk.place():
            rows = await self._records.usage(words.get("tenant", ""), words.get("key_id", ""))
            await exchange.respond_json(
                {"object": "list", "data": [describe_usage(row) for row in rows]}
            )
