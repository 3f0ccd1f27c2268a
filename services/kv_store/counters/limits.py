"""Limits that all gateways share: amounts by the minute, and places at one time."""

from collections.abc import Sequence
from dataclasses import dataclass

from deepflow.errors import InvalidRequest
from deepflow.v1 import store_pb2
from services.kv_store.counters import scripts
from services.kv_store.records import keys
from services.kv_store.records.answers import checked, text
from services.kv_store.redis_link import RedisLink

SPACE = "deepflow:disposable:limits:"
WINDOW_MS = 60_000
BATCH_MAX = 512
LEASE_SECONDS_MIN = 0.1
LEASE_SECONDS_MAX = 60.0
# Lua counts in doubles: up to here every sum is exact.
AMOUNT_MAX = 2**50


@dataclass(frozen=True, slots=True)
class Taking:
    window: int
    resets_in_seconds: float
    # (granted, remaining) in the order of the takes.
    taken: list[tuple[int, int]]


class Limits:
    def __init__(self, redis: RedisLink) -> None:
        self._redis = redis

    async def take(self, takes: Sequence[store_pb2.Take]) -> Taking:
        _check_batch(len(takes), "takes")
        arguments = [WINDOW_MS]
        for index, take in enumerate(takes):
            keys.check_key(take.name, f"takes[{index}].name")
            amounts = (take.limit, take.charge, take.need, take.ahead)
            if max(amounts) > AMOUNT_MAX:
                raise InvalidRequest(
                    f"takes[{index}] has an amount over {AMOUNT_MAX}", param=f"takes[{index}]"
                )
            arguments += amounts
        names = [f"{SPACE}window:{take.name}" for take in takes]
        window, milliseconds, *columns = map(
            int, checked(await self._redis.run(scripts.TAKE, names, arguments))
        )
        taken = list(zip(columns[::2], columns[1::2], strict=True))
        return Taking(window, milliseconds / 1000, taken)

    async def hold(
        self, holder: str, lease_seconds: float, slots: Sequence[store_pb2.HoldSlots]
    ) -> list[int]:
        """How many are held now, in the order of `slots`."""
        if not slots:
            return []
        _check_batch(len(slots), "slots")
        keys.check_key(holder, "holder")
        if not LEASE_SECONDS_MIN <= lease_seconds <= LEASE_SECONDS_MAX:
            raise InvalidRequest(
                f"lease_seconds is {lease_seconds}; it must be from {LEASE_SECONDS_MIN} to"
                f" {LEASE_SECONDS_MAX:.0f}",
                param="lease_seconds",
            )
        arguments: list[str | bytes | int] = [
            holder,
            int(lease_seconds * 1000),
            int(LEASE_SECONDS_MAX * 1000),
        ]
        for index, slot in enumerate(slots):
            keys.check_key(slot.name, f"slots[{index}].name")
            arguments += (slot.limit, slot.need, slot.ahead)
        names = [f"{SPACE}slots:{slot.name}" for slot in slots]
        reply = checked(await self._redis.run(scripts.HOLD, names, arguments))
        return [int(text(held)) for held in reply]


def _check_batch(count: int, param: str) -> None:
    if count > BATCH_MAX:
        raise InvalidRequest(f"{param} has {count} items; at most {BATCH_MAX}", param=param)
