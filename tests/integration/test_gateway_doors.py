"""Keys and who may come in: real gateways, a real kv_store on a real Redis, a real NATS."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from deepflow.access.secrets import cluster_key, new_key
from deepflow.config import ConfigError
from services.gateway.config import GatewayConfig
from services.gateway.doors import Doors
from services.gateway.server import GatewayServer
from tests.integration.gateway_support import (
    MODEL,
    TOKEN,
    FakeJobExecutor,
    gateway_stand,
)
from tests.integration.gateway_town import Door, Town, bearer, code, knows, opens, running_town
from tests.servers import until


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with running_town(tmp_path) as town:
        yield town


@pytest.fixture
async def door(town: Town) -> AsyncIterator[Door]:
    async with town.gateway() as door:
        yield door


async def test_the_first_key_shuts_the_door(town: Town, door: Door) -> None:
    assert await door.status() == 200
    assert await door.status("none") == 200  # what clients send where nothing is asked for
    key, record = await town.records.create_key("default")

    async def is_shut() -> bool:
        return await door.status() == 401

    await until(is_shut, what="a request without a key is refused")
    refusal = await door.ask("df-wrong")
    assert refusal.status_code == 401 and code(refusal) == "invalid_api_key"
    assert refusal.headers["www-authenticate"] == "Bearer"
    assert (await door.http.get("/v1/nowhere")).status_code == 401
    assert (await door.http.get("/health")).status_code == 200
    assert (await door.http.get("/ready")).status_code == 200
    assert await door.status(key) == 200
    await town.records.revoke_key(record.id)

    async def is_revoked() -> bool:
        return await door.status(key) == 401

    await until(is_revoked, what="the revoked key is refused")
    assert await door.status() == 401  # the last key was revoked: the door stays shut


async def test_a_new_key_works_at_once_on_every_gateway(town: Town) -> None:
    await town.records.create_key("default")
    async with town.gateway() as first, town.gateway() as second:
        key, _ = await town.records.create_key("default")

        async def opens(door: Door) -> bool:
            return await door.status(key) == 200

        await until(lambda: opens(first), what="the key on the first gateway")
        await until(lambda: opens(second), what="the key on the second gateway")


async def test_openai_client_with_a_key(town: Town, door: Door) -> None:
    await town.records.change_tenant("shop", {"allowed_models": [MODEL]})
    key, _ = await town.records.create_key("shop")
    await until(lambda: opens(door, key), what="the key")
    base, messages = f"{door.stand.url}/v1", [{"role": "user", "content": "hi"}]
    async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        reply = await client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
        assert reply.choices[0].message.content
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.chat.completions.create(model="other", messages=messages)  # type: ignore[arg-type]
        assert refused.value.code == "model_not_allowed" and refused.value.param == "model"
    async with openai.AsyncOpenAI(base_url=base, api_key="df-no", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_tenants_never_share_a_salt(town: Town, door: Door) -> None:
    keys = [(await town.records.create_key(tenant))[0] for tenant in ("one", "two")]
    contexts = []
    for key in keys:
        await until(lambda key=key: opens(door, key), what="the key")  # type: ignore[misc]
        while not door.stand.executor.jobs.empty():
            context = door.stand.executor.jobs.get_nowait().job.context
        contexts.append(context)
    assert [context.tenant for context in contexts] == ["one", "two"]
    assert contexts[0].cache_salt != contexts[1].cache_salt


async def test_without_redis_known_keys_go_on(town: Town, door: Door) -> None:
    await town.records.change_tenant("shop", {"requests_per_minute": 5})
    key, _ = await town.records.create_key("shop")
    admin, _ = await town.records.create_key("default", is_admin=True)
    await until(lambda: opens(door, key), what="the key")
    await until(lambda: knows(door, admin), what="the other key")
    await town.redis.kill()

    async def is_unknown_unavailable() -> bool:
        return await door.status(new_key()) == 503

    await until(is_unknown_unavailable, what="an unknown key is answered 503")
    refusal = await door.ask(new_key())
    assert code(refusal) == "keys_unavailable" and int(refusal.headers["retry-after"]) >= 1
    assert await door.status(admin) == 200
    assert await door.status() == 401
    statuses = [await door.status(key) for _ in range(12)]
    assert set(statuses) == {200, 429} or set(statuses) == {429}
    await town.redis.start()

    async def is_refused_again() -> bool:
        return await door.status(new_key()) == 401

    await until(is_refused_again, what="an unknown key is 401 again")


async def test_lost_records_are_not_taken_for_no_keys(town: Town, door: Door) -> None:
    key, _ = await town.records.create_key("default")
    await until(lambda: opens(door, key), what="the key")
    client = Redis(host="127.0.0.1", port=town.redis.port)
    await client.flushall()
    await client.aclose()

    async def is_unknown_unavailable() -> bool:
        return await door.status(new_key()) == 503

    await until(is_unknown_unavailable, what="an unknown key is answered 503")
    assert await door.status(key) == 200
    assert await door.status() == 401


async def test_a_gateway_that_never_read_the_keys_lets_nobody_in(town: Town) -> None:
    await town.redis.kill()
    async with (
        gateway_stand(FakeJobExecutor(), **town.settings) as stand,
        httpx.AsyncClient(base_url=stand.url, timeout=10) as http,
    ):
        door = Door(stand, http)
        refusal = await door.ask(new_key())
        assert refusal.status_code == 503 and code(refusal) == "keys_unavailable"
        assert await door.status() == 503
        assert await door.status(cluster_key(TOKEN)) == 200


async def test_admin_routes(town: Town, door: Door) -> None:
    assert (await door.http.get("/v1/admin/keys")).status_code == 401  # though nothing else asks
    keys = [
        (await town.records.create_key("default", is_admin=True))[0],
        (await town.records.create_key("shop"))[0],
    ]
    admin, plain = map(bearer, keys)
    await until(lambda: knows(door, *keys), what="keys")
    for path in ("/v1/admin/keys", "/v1/admin/usage", "/metrics"):
        refusal = await door.http.get(path, headers=plain)
        assert refusal.status_code == 403 and code(refusal) == "admin_key_needed"
        assert (await door.http.get(path, headers=admin)).status_code == 200
    made = await door.http.post(
        "/v1/admin/keys", headers=admin, json={"tenant": "new", "label": "a label"}
    )
    assert made.status_code == 200 and made.json()["key"].startswith("df-")
    changed = await door.http.put(
        "/v1/admin/tenants/new", headers=admin, json={"requests_per_minute": 3}
    )
    assert (changed.json()["requests_per_minute"], changed.json()["weight"]) == (3, 1.0)
    weighted = await door.http.put("/v1/admin/tenants/new", headers=admin, json={"weight": 2.5})
    assert (weighted.json()["requests_per_minute"], weighted.json()["weight"]) == (3, 2.5)
    await ten_at_one_time(town, door, admin)
    listed = (await door.http.get("/v1/admin/keys", headers=admin)).json()
    assert {row["tenant"] for row in listed["data"]} == {"default", "shop", "new"}
    assert made.json()["key"] not in str(listed)
    key_path = f"/v1/admin/keys/{made.json()['id']}"
    assert (await door.http.delete(key_path, headers=admin)).json()["revoked_unix_ms"]
    missing = await door.http.delete("/v1/admin/keys/nobody", headers=admin)
    assert missing.status_code == 404 and code(missing) == "key_not_found"


async def ten_at_one_time(town: Town, door: Door, admin: dict[str, str]) -> None:
    """Half over HTTP, half as the command does it: all are let in, and no change is lost."""
    path = "/v1/admin/tenants/new"
    by_http, by_command = ("requests_per_minute", "weight"), "tokens_per_minute"
    replies = await asyncio.gather(
        *(door.http.put(path, headers=admin, json={by_http[i % 2]: 5 + i}) for i in range(5)),
        *(town.records.change_tenant("new", {by_command: 5 + i}) for i in range(5)),
    )
    assert [it.status_code for it in replies if isinstance(it, httpx.Response)] == [200] * 5
    listed = (await door.http.get("/v1/admin/keys", headers=admin)).json()
    (row,) = [it for it in listed["tenants"] if it["name"] == "new"]
    assert all(row[field] in range(5, 10) for field in (*by_http, by_command))


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("/v1/admin/tenants/new", {"requests_per_minute": -1}, "requests_per_minute"),
    ("/v1/admin/tenants/new", {"tokens_per_minute": "9"}, "tokens_per_minute"),
    ("/v1/admin/tenants/new", {"allowed_models": "demo"}, "allowed_models"),
    ("/v1/admin/tenants/new", {"allowed_models": [""]}, "allowed_models[0]"),
    ("/v1/admin/tenants/new", {"rpm": 1}, "rpm"),
    ("/v1/admin/tenants/new", {"weight": 0}, "weight"),
    ("/v1/admin/tenants/new", {"weight": "2"}, "weight"),
    ("/v1/admin/tenants/new", {"weight": 1e9}, "weight"),
    ("/v1/admin/tenants/new", {"weight": None}, "weight"),
    ("/v1/admin/tenants/new", {"x": None}, "x"),
    ("/v1/admin/tenants/a%20b", {"requests_per_minute": 1}, "tenant"),
    ("/v1/admin/keys", {"tenant": "a/b"}, "tenant"),
    ("/v1/admin/keys", {"is_admin": 1}, "is_admin"),
    ("/v1/admin/keys", {"label": "x\n"}, "label"),
)


async def test_admin_bodies_that_are_wrong(door: Door) -> None:
    for path, body, param in WRONG:
        method = "POST" if path.endswith("keys") else "PUT"
        headers = bearer(cluster_key(TOKEN))
        reply = await door.http.request(method, path, json=body, headers=headers)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), body
    assert not door.stand.gateway.doors.ring.has_keys


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("requests_per_minute", "must be an integer; 0 is no limit"),
        ("allowed_models", "[] is every model"),
        ("weight", "1 is the usual"),
        ("x", "is not known here; there are: requests_per_minute, "),
    ],
)
async def test_null_is_answered_with_what_would_be_right(
    door: Door, field: str, remedy: str
) -> None:
    headers = bearer(cluster_key(TOKEN))
    reply = await door.http.put("/v1/admin/tenants/new", json={field: None}, headers=headers)
    said = reply.json()["error"]["message"]
    assert reply.status_code == 400 and repr(field) in said and remedy in said


async def test_the_world_needs_a_key(town: Town) -> None:
    settings = {**town.settings, "host": "0.0.0.0", "port": 0, "cluster_token": TOKEN}
    gateway = GatewayServer(GatewayConfig(**settings))
    with pytest.raises(ConfigError, match="deepflow keys create --admin"):
        await gateway.start()
    await gateway.stop()
    await town.records.create_key("default")
    gateway = GatewayServer(GatewayConfig(**settings))
    try:
        await gateway.start()
    finally:
        await gateway.stop()


def test_open_access_is_for_the_loopback() -> None:
    config = GatewayConfig(access="open", host="0.0.0.0", cluster_token=TOKEN)
    with pytest.raises(ConfigError, match="loopback"):
        Doors(config, "gateway-1", lambda: 1)
