"""Limits of tenants and the metering of usage, over several gateways and one store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.limits import limiter
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    MODEL,
    FakeJob,
    say_hello,
)
from tests.integration.gateway_town import Door, Town, code, knows, opens, running_town
from tests.servers import until

USED = {"prompt_tokens": 7, "completion_tokens": 5, "cached_tokens": 4}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is away when it is stopped, not when it is slow."""
    monkeypatch.setattr(limiter, "CALL_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(limiter, "WAIT_SECONDS", 2 * DEADLINE_SECONDS)


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with running_town(tmp_path) as town:
        yield town


@pytest.fixture
async def door(town: Town) -> AsyncIterator[Door]:
    async with town.gateway() as door:
        yield door


async def test_a_limit_holds_over_two_gateways(town: Town) -> None:
    await town.records.change_tenant("shop", {"requests_per_minute": 6})
    key, _ = await town.records.create_key("shop")
    async with town.gateway() as first, town.gateway() as second:
        await until(lambda: knows(first, key), what="keys")
        await until(lambda: knows(second, key), what="keys")
        # At most two minutes are touched: whatever is beyond two limits must be refused.
        replies = [await door.ask(key) for _ in range(7) for door in (first, second)]
    admitted = [reply for reply in replies if reply.status_code == 200]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(admitted) + len(refused) == 14 and 6 <= len(admitted) <= 12
    assert refused and code(refused[0]) == "rate_limit_exceeded"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60
    assert refused[0].headers["x-ratelimit-limit-requests"] == "6"
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert admitted[0].headers["x-ratelimit-limit-requests"] == "6"
    assert 0 <= int(admitted[0].headers["x-ratelimit-remaining-requests"]) <= 5


async def test_tokens_are_charged_as_they_were_used(town: Town, door: Door) -> None:
    await town.records.change_tenant("shop", {"tokens_per_minute": 1000})
    key, _ = await town.records.create_key("shop")
    await until(lambda: opens(door, key), what="the key")
    replies = [await door.ask(key, max_tokens=9)]

    async def is_exact() -> bool:
        """What was held for an answer is settled soon after it, not with it."""
        replies.append(await door.ask(key, max_tokens=9))
        before, after = (int(it.headers["x-ratelimit-remaining-tokens"]) for it in replies[-2:])
        return before - after == USED["prompt_tokens"] + USED["completion_tokens"]

    await until(is_exact, what="a request that costs what it used")
    too_long = await door.ask(key, messages=[{"role": "user", "content": "word " * 2000}])
    assert (
        too_long.status_code == 429 and "tokens per minute" in too_long.json()["error"]["message"]
    )


async def test_requests_at_one_time(town: Town) -> None:
    await town.records.change_tenant("shop", {"concurrent_requests": 1})
    key, _ = await town.records.create_key("shop")
    gate = asyncio.Event()

    async def hold(job: FakeJob) -> None:
        await gate.wait()
        await say_hello(job)

    async with town.gateway() as first, town.gateway() as second:
        await until(lambda: opens(first, key), what="the key")
        first.stand.executor.script = hold

        async def is_free(door: Door) -> bool:
            return await door.status(key) == 200

        await until(lambda: is_free(second), what="the second gateway lets it in")
        await until(lambda: _has_slot_back(second), what="its place is given back")
        while not first.stand.executor.jobs.empty():
            first.stand.executor.jobs.get_nowait()
        running = asyncio.create_task(first.ask(key))
        await first.stand.executor.jobs.get()
        refusal = await second.ask(key)
        assert refusal.status_code == 429 and code(refusal) == "concurrent_requests_exceeded"
        assert refusal.headers["retry-after"] == "1"
        gate.set()
        assert (await running).status_code == 200
        await until(lambda: is_free(second), what="the place is free again")


async def _has_slot_back(door: Door) -> bool:
    account = door.stand.gateway.doors._limiter._accounts["shop"]
    return account.slots is not None and not account.slots.is_alive


async def test_usage_is_metered_by_key_and_model(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.metering.meter.CALL_SECONDS", DEADLINE_SECONDS)
    key, record = await town.records.create_key("shop")
    async with town.gateway() as door:
        await until(lambda: knows(door, key), what="keys")
        replies = [await door.ask(key) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200] * 3
    # The gateway has ended: what it knew is stored.
    (row,) = await town.records.usage(key_id=record.id)
    assert (row.tenant, row.model, row.requests) == ("shop", MODEL, 3)
    assert row.prompt_tokens == 3 * USED["prompt_tokens"]
    assert row.completion_tokens == 3 * USED["completion_tokens"]
    assert row.cached_tokens == 3 * USED["cached_tokens"]
    assert await town.records.usage(tenant="other") == []


async def test_usage_waits_for_the_store(town: Town, door: Door) -> None:
    key, record = await town.records.create_key("shop")
    await until(lambda: opens(door, key), what="the key")
    await town.redis.kill()
    assert await door.status(key) == 200
    await town.redis.start()

    async def is_stored() -> bool:
        rows = await town.records.usage(key_id=record.id)
        return bool(rows) and rows[0].requests == 2

    await until(is_stored, what="both requests are stored")
