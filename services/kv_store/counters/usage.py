"""What keys have used, for ever: sums by tenant, key and model."""

import re
from collections.abc import Sequence

from deepflow.errors import InvalidRequest, TooLarge
from deepflow.v1 import store_pb2
from services.kv_store.counters import scripts
from services.kv_store.records import keys
from services.kv_store.records.answers import checked, text
from services.kv_store.redis_link import RedisLink, Reply

SUMS = f"{keys.SPACE}usage"
LAST_BATCH = f"{keys.SPACE}usage-batch:"

METRICS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
ROWS_MAX = 1000
FIELDS_MAX = 400_000
AMOUNT_MAX = 2**53
MODEL_CHARACTERS_MAX = 256
# A reporter that was silent for longer sends nothing again that it had sent before.
LAST_BATCH_SECONDS = 7 * 24 * 3600

_WORD = re.compile(r"[A-Za-z0-9._-]{1,128}")


class UsageSums:
    def __init__(self, redis: RedisLink) -> None:
        self._redis = redis

    async def add(self, reporter: str, batch: int, rows: Sequence[store_pb2.KeyUsage]) -> None:
        """Once, however often the batch is sent; a batch older than the last one is dropped."""
        keys.check_key(reporter, "reporter")
        if batch < 1:
            raise InvalidRequest("batch is 0; the first one is 1", param="batch")
        if len(rows) > ROWS_MAX:
            raise InvalidRequest(f"rows has {len(rows)} items; at most {ROWS_MAX}", param="rows")
        arguments: list[str | bytes | int] = [batch, LAST_BATCH_SECONDS, FIELDS_MAX]
        for index, row in enumerate(rows):
            arguments += _fields(row, f"rows[{index}]")
        names = [keys.GENERATION, SUMS, LAST_BATCH + reporter]
        _checked(await self._redis.run(scripts.ADD_USAGE, names, arguments))

    async def list(self, tenant: str = "", key_id: str = "") -> list[store_pb2.KeyUsage]:
        """Sorted by tenant, key and model; an empty word stands for all."""
        reply = _checked(await self._redis.run(scripts.LIST_USAGE, [keys.GENERATION, SUMS], []))
        rows: dict[tuple[str, str, str], store_pb2.KeyUsage] = {}
        for field, amount in zip(reply[::2], reply[1::2], strict=True):
            metric, found_tenant, found_key, model = text(field).split("/", 3)
            if tenant in ("", found_tenant) and key_id in ("", found_key):
                name = (found_tenant, found_key, model)
                row = rows.setdefault(
                    name,
                    store_pb2.KeyUsage(tenant=found_tenant, key_id=found_key, model=model),
                )
                setattr(row, metric, int(amount))
        return [rows[name] for name in sorted(rows)]


def _fields(row: store_pb2.KeyUsage, param: str) -> list[str | bytes | int]:
    for name, value in (("tenant", row.tenant), ("key_id", row.key_id)):
        if not _WORD.fullmatch(value):
            raise InvalidRequest(
                f"{param}.{name} {value!r} must be 1 to 128 letters, digits or . _ -",
                param=f"{param}.{name}",
            )
    if not 0 < len(row.model) <= MODEL_CHARACTERS_MAX:
        raise InvalidRequest(
            f"{param}.model must have 1 to {MODEL_CHARACTERS_MAX} characters",
            param=f"{param}.model",
        )
    fields: list[str | bytes | int] = []
    for metric in METRICS:
        amount: int = getattr(row, metric)
        if amount > AMOUNT_MAX:
            raise InvalidRequest(f"{param}.{metric} is too large", param=f"{param}.{metric}")
        if amount:
            fields += (f"{metric}/{row.tenant}/{row.key_id}/{row.model}", amount)
    return fields


def _checked(reply: Reply) -> Reply:
    if bytes(reply[0]) == b"full":
        raise TooLarge("too many keys and models have usage already", param="rows")
    return checked(reply)
