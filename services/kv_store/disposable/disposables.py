"""Values with an end: put, read, listed. Whoever reads one must be able to do without it."""

from dataclasses import dataclass

from deepflow import clock
from deepflow.errors import InvalidRequest, TooLarge
from services.kv_store import metrics
from services.kv_store.disposable import scripts
from services.kv_store.records import keys
from services.kv_store.redis_link import Argument, RedisLink

TTL_SECONDS_MIN = 0.1
TTL_SECONDS_MAX = 24 * 3600.0
KEYS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Page:
    values: list[tuple[str, bytes]]  # sorted by key
    is_truncated: bool


class Disposables:
    """Nothing here is a record: an empty answer may mean that everything was thrown away."""

    def __init__(
        self, redis: RedisLink, *, value_bytes_max: int, bytes_max: int, page_bytes_max: int
    ) -> None:
        self._redis = redis
        self._value_bytes_max = min(value_bytes_max, bytes_max - keys.KEY_LENGTH_MAX)
        self._bytes_max = bytes_max
        self._page_bytes_max = page_bytes_max

    async def get(self, key: str) -> bytes | None:
        return await self._redis.get(scripts.VALUE + keys.check_key(key))

    async def put(self, key: str, value: bytes, ttl_seconds: float) -> None:
        """Others may be evicted for it: those that would have expired first."""
        keys.check_key(key)
        if len(value) > self._value_bytes_max:
            raise TooLarge(
                f"value has {len(value)} bytes; at most {self._value_bytes_max} are allowed",
                param="value",
            )
        if not TTL_SECONDS_MIN <= ttl_seconds <= TTL_SECONDS_MAX:
            raise InvalidRequest(
                f"ttl_seconds is {ttl_seconds}; it must be from {TTL_SECONDS_MIN} to"
                f" {TTL_SECONDS_MAX:.0f}",
                param="ttl_seconds",
            )
        now, life = clock.unix_ms(), int(ttl_seconds * 1000)
        arguments: list[Argument] = [scripts.VALUE, key, value, now, life]
        arguments += [self._bytes_max, KEYS_MAX]
        (evicted,) = await self._redis.run(scripts.PUT, scripts.KEYS, arguments)
        metrics.EVICTIONS.inc(evicted)

    async def list(self, prefix: str, after: str) -> Page:
        """What lies under the prefix, behind `after`; at least one value where there is any."""
        low, high = keys.lex_range(keys.check_prefix(prefix))
        if after:
            if not keys.check_key(after, "after").startswith(prefix):
                raise InvalidRequest(f"after must begin with the prefix {prefix!r}", param="after")
            low = f"({after}"
        arguments: list[Argument] = [scripts.VALUE, low, high, self._page_bytes_max]
        truncated, *columns = await self._redis.run(scripts.LIST, scripts.KEYS, arguments)
        pairs = zip(columns[::2], columns[1::2], strict=True)
        return Page([(key.decode(), value) for key, value in pairs], bool(truncated))
