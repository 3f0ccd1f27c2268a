"""Who may act for all: one holder at a time, each with a greater token than any before."""

from dataclasses import dataclass

from deepflow.errors import InvalidRequest
from services.kv_store.records import keys, scripts
from services.kv_store.records.answers import checked, text
from services.kv_store.redis_link import Argument, RedisLink

TTL_SECONDS_MIN = 0.1
TTL_SECONDS_MAX = 3600.0
KNOWN_TOKEN_MAX = 1 << 48  # what Lua counts exactly, with room to go on


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    token: int
    remaining_seconds: float


class Leases:
    """A holder that asks again in time keeps its token; after expiry everybody gets a new one."""

    def __init__(self, redis: RedisLink) -> None:
        self._redis = redis

    async def acquire(self, name: str, holder: str, ttl_seconds: float, known_token: int) -> Lease:
        """The lease as it stands now: compare its holder with the one asked for.

        A token that is given out is greater than `known_token`.
        """
        keys.check_key(name, "name")
        keys.check_key(holder, "holder")
        if not TTL_SECONDS_MIN <= ttl_seconds <= TTL_SECONDS_MAX:
            raise InvalidRequest(
                f"ttl_seconds is {ttl_seconds}; it must be from {TTL_SECONDS_MIN} to"
                f" {TTL_SECONDS_MAX:.0f}",
                param="ttl_seconds",
            )
        if known_token > KNOWN_TOKEN_MAX:
            raise InvalidRequest(
                f"known_token is {known_token}; it must be at most {KNOWN_TOKEN_MAX}",
                param="known_token",
            )
        arguments: list[Argument] = [holder, int(ttl_seconds * 1000), known_token]
        reply = await self._redis.run(scripts.ACQUIRE, _lease_keys(name), arguments)
        found, token, milliseconds = checked(reply)
        return Lease(text(found), int(token), int(milliseconds) / 1000)

    async def release(self, name: str, holder: str, token: int) -> None:
        """Nothing happens where this holder holds it no more."""
        keys.check_key(name, "name")
        keys.check_key(holder, "holder")
        checked(await self._redis.run(scripts.RELEASE, _lease_keys(name), [holder, token]))


def _lease_keys(name: str) -> list[str]:
    return [keys.GENERATION, keys.LEASE + name, keys.LEASE_TOKEN + name]
