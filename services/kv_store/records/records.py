"""Versioned values by key."""

from dataclasses import dataclass

from deepflow.errors import InvalidRequest, TooLarge
from services.kv_store.records import keys, scripts
from services.kv_store.records.answers import checked, text
from services.kv_store.redis_link import RedisLink


@dataclass(frozen=True, slots=True)
class Record:
    key: str
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Fence:
    """The lease that guards a write, and the token under which the writer believes to hold it."""

    lease: str = ""
    token: int = 0

    def __post_init__(self) -> None:
        if self.lease:
            keys.check_key(self.lease, "lease")
        elif self.token:
            raise InvalidRequest("fencing_token needs the name of its lease", param="lease")


class Records:
    """Reads and writes; raises Unavailable rather than take a lost record for an absent one."""

    def __init__(self, redis: RedisLink, *, value_bytes_max: int, list_bytes_max: int) -> None:
        self._redis = redis
        self._value_bytes_max = value_bytes_max
        self._list_bytes_max = list_bytes_max

    async def get(self, key: str) -> Record | None:
        keys.check_key(key)
        found = checked(await self._redis.run(scripts.GET, _record_keys(key), [key]))
        return Record(key, found[0], int(found[1])) if found else None

    async def put(self, key: str, value: bytes, expected: int | None, fence: Fence) -> int:
        """The record's new version. Conflict where it is not at `expected`, or the fence is old."""
        keys.check_key(key)
        if len(value) > self._value_bytes_max:
            raise TooLarge(
                f"value has {len(value)} bytes; at most {self._value_bytes_max} are allowed",
                param="value",
            )
        reply = await self._redis.run(
            scripts.PUT,
            [*_record_keys(key), keys.LEASE_TOKEN + fence.lease],
            [fence.lease, fence.token, key, value, "" if expected is None else expected],
        )
        return int(checked(reply)[0])

    async def delete(self, key: str, fence: Fence) -> bool:
        """Answers whether there was one."""
        keys.check_key(key)
        reply = await self._redis.run(
            scripts.DELETE,
            [*_record_keys(key), keys.LEASE_TOKEN + fence.lease],
            [fence.lease, fence.token, key],
        )
        return bool(checked(reply)[0])

    async def list(self, prefix: str) -> tuple[str, list[Record]]:
        """The generation and, sorted by key, every record under the prefix."""
        low, high = keys.lex_range(keys.check_prefix(prefix))
        reply = await self._redis.run(
            scripts.LIST,
            [keys.GENERATION, keys.INDEX],
            [low, high, keys.RECORD, self._list_bytes_max],
        )
        generation, *columns = checked(reply)
        return text(generation), [
            Record(text(key), value, int(version))
            for key, value, version in zip(columns[::3], columns[1::3], columns[2::3], strict=True)
        ]


def _record_keys(key: str) -> list[str]:
    return [keys.GENERATION, keys.RECORD + key, keys.INDEX]
