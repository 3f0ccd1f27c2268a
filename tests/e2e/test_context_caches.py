"""Explicit context caches through the whole mesh, asked for by the real openai client."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack, wait_until

BLOCK = 16
RULES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are terse and never wrong. " * 12},
    {"role": "user", "content": "Who are you?"},
]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 7 + 5?"}]


def make(http: httpx.Client, model: str, **fields: Any) -> dict[str, Any]:
    reply = http.post("/v1/context_caches", json={"model": model, "messages": RULES, **fields})
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


def ask(client: openai.OpenAI, model: str, context: str = "", **fields: Any) -> Any:
    extra = {"context_cache_id": context} if context else {}
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 8, **fields}
    return client.chat.completions.create(model=model, extra_body=extra, **fields)


def cached(reply: Any) -> int:
    count: int = reply.usage.prompt_tokens_details.cached_tokens
    return count


def whole_blocks(made: dict[str, Any]) -> int:
    tokens: int = made["tokens"]
    return tokens // BLOCK * BLOCK


def error_of(reply: httpx.Response) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


# ── the demo model on the CPU ────────────────────────────────────────────────────────────────────


def test_a_context_comes_first_and_is_not_computed_again(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    made = make(http, model, ttl_seconds=600, name="rules")
    assert made["object"] == "context_cache" and made["state"] == "ready"
    assert made["expires"] - made["created"] == 600 and made["name"] == "rules"
    assert made["usage"]["prompt_tokens"] == made["tokens"] > 2 * BLOCK
    assert made["bytes"] > 0 and made["bytes"] % (whole_blocks(made) // BLOCK) == 0
    reply = ask(client, model, made["id"])
    assert cached(reply) == whole_blocks(made)
    plain = ask(client, model, messages=[*RULES, *QUESTION])
    assert reply.choices[0].message.content == plain.choices[0].message.content
    assert reply.usage.prompt_tokens == plain.usage.prompt_tokens
    assert cached(plain) == (plain.usage.prompt_tokens - 1) // BLOCK * BLOCK  # all, by content
    http.delete(f"/v1/context_caches/{made['id']}")


def test_a_stream_begins_with_its_context_too(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    other: list[ChatCompletionMessageParam] = [{"role": "system", "content": "Say it twice. " * 20}]
    made = make(http, model, messages=other)
    chunks = list(
        ask(client, model, made["id"], stream=True, stream_options={"include_usage": True})
    )
    whole = ask(client, model, messages=[*other, *QUESTION])
    text = "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
    assert text == whole.choices[0].message.content
    assert cached(chunks[-1]) == whole_blocks(made) > 0
    http.delete(f"/v1/context_caches/{made['id']}")


def test_completions_go_on_behind_texts_and_token_ids(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    text = "one two three four five six seven eight nine ten " * 6
    words = http.post("/v1/context_caches", json={"model": model, "prompt": text}).json()
    fields: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0}
    named = {"context_cache_id": words["id"]}
    both = client.completions.create(prompt=["one", "two"], extra_body=named, **fields)
    plain = client.completions.create(prompt=[text + "one", text + "two"], **fields)
    assert [it.text for it in both.choices] == [it.text for it in plain.choices]
    assert cached(both) >= 2 * whole_blocks(words) > 0

    ids = list(range(20, 80))
    numbers = http.post("/v1/context_caches", json={"model": model, "prompt": ids}).json()
    assert numbers["tokens"] == len(ids)
    named = {"context_cache_id": numbers["id"]}
    reply = client.completions.create(prompt=[7, 8, 9], extra_body=named, **fields)
    plain = client.completions.create(prompt=[*ids, 7, 8, 9], **fields)
    assert reply.choices[0].text == plain.choices[0].text
    assert cached(reply) == len(ids) // BLOCK * BLOCK
    for made in (words, numbers):
        assert http.delete(f"/v1/context_caches/{made['id']}").json()["deleted"] is True


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ttl_seconds": 0}, (400, "out_of_range", "ttl_seconds")),
        ({"ttl_seconds": 10**9}, (400, "out_of_range", "ttl_seconds")),
        ({"ttl_seconds": "60"}, (400, "invalid_type", "ttl_seconds")),
        ({"pin": 1}, (400, "invalid_type", "pin")),
        ({"name": "x" * 129}, (400, "out_of_range", "name")),
        ({"messages": None}, (400, "missing_field", "messages")),
        ({"messages": []}, (400, "empty", "messages")),
        ({"prompt": "x"}, (400, "conflicting_fields", "prompt")),
        ({"messages": None, "prompt": ""}, (400, "empty", "prompt")),
        ({"messages": None, "prompt": [10**6]}, (400, "token_id_out_of_range", "prompt[0]")),
        ({"ttl": 5}, (400, "unknown_field", "ttl")),
        ({"model": "nobody"}, (404, "model_not_found", "model")),
        (
            {"messages": [{"role": "user", "content": "word " * 5000}]},
            (400, "context_length_exceeded", "messages"),
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 1_000_001}]},
            (413, "too_large", "messages"),
        ),
    ],
)
def test_a_bad_request_names_its_field(
    http: httpx.Client, model: str, changes: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    body = {"model": model, "messages": RULES, **changes}
    assert error_of(http.post("/v1/context_caches", json=body)) == expected
    assert http.get("/v1/context_caches").json()["data"] == []


@pytest.mark.parametrize("name", ["ctx-" + "0" * 32, "x", "ctx-..%2F..", "a/b"])
def test_what_is_not_there_is_not_found(http: httpx.Client, name: str) -> None:
    expected = (404, "context_cache_not_found", "context_cache_id")
    assert error_of(http.get(f"/v1/context_caches/{name}")) == expected
    assert error_of(http.delete(f"/v1/context_caches/{name}")) == expected


def test_a_request_that_names_a_bad_context_is_refused(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    with pytest.raises(openai.BadRequestError) as malformed:
        ask(client, model, "my-context")
    assert (malformed.value.code, malformed.value.param) == ("out_of_range", "context_cache_id")
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            ask(client, model, "ctx-" + "0" * 32, stream=stream)
        assert unknown.value.code == "context_cache_not_found"
    made = make(http, model)
    with pytest.raises(openai.BadRequestError) as mismatch:
        client.completions.create(
            model=model, prompt="x", extra_body={"context_cache_id": made["id"]}
        )
    assert (mismatch.value.code, mismatch.value.param) == (
        "context_cache_mismatch",
        "context_cache_id",
    )
    assert http.delete(f"/v1/context_caches/{made['id']}").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, model, made["id"])


def test_an_expired_context_has_vanished(
    client: openai.OpenAI, http: httpx.Client, model: str
) -> None:
    made = make(http, model, ttl_seconds=1)
    path = f"/v1/context_caches/{made['id']}"
    wait_until(lambda: http.get(path).status_code == 404, "it expires")
    assert http.get("/v1/context_caches").json()["data"] == []
    with pytest.raises(openai.NotFoundError):
        ask(client, model, made["id"])


# ── two of everything, tenants, and a death ──────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ["--gateways", "2", "--job-executors", "2", "--task-executors", "2"]
    folder = tmp_path_factory.mktemp("contexts") / "data"
    with running_stack(folder, "--device", "emulated:zero", *options) as running:
        yield running


@pytest.fixture(scope="module")
def tenants(several: Stack) -> dict[str, str]:
    """A key of each of two tenants, known to both gateways."""
    keys = {}
    for tenant in ("shop", "bank"):
        shown = several.cli("keys", "create", "--json", "--tenant", tenant).stdout
        keys[tenant] = json.loads(shown)["key"]
    for url in several.status()["gateways"]:
        for key in keys.values():
            with door(url, key) as http:
                wait_until(lambda http=http: http.get("/v1/models").status_code == 200, "the key")  # type: ignore[misc]
    return keys


def door(url: str, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS_MAX, headers=headers)


def chat(http: httpx.Client, context: str) -> httpx.Response:
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 4, "context_cache_id": context}
    return http.post("/v1/chat/completions", json=body)


def hit(reply: httpx.Response) -> int:
    assert reply.status_code == 200, reply.text
    count: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def test_every_gateway_knows_it_and_every_use_finds_it(
    several: Stack, tenants: dict[str, str]
) -> None:
    first, second = several.status()["gateways"]
    with door(first, tenants["shop"]) as one, door(second, tenants["shop"]) as other:
        made = make(one, "demo", pin=True)
        assert made["pinned"] is True
        for _ in range(4):
            for http in (one, other):
                assert hit(chat(http, made["id"])) >= whole_blocks(made) > 0
        assert other.get(f"/v1/context_caches/{made['id']}").json()["bytes"] >= made["bytes"] > 0
        assert other.delete(f"/v1/context_caches/{made['id']}").status_code == 200
        expected = (404, "context_cache_not_found", "context_cache_id")
        assert error_of(chat(one, made["id"])) == expected
        assert one.get("/v1/context_caches").json()["data"] == []


def test_tenants_neither_see_nor_use_one_anothers(several: Stack, tenants: dict[str, str]) -> None:
    with door(several.url, tenants["shop"]) as shop, door(several.url, tenants["bank"]) as bank:
        made = make(shop, "demo")
        assert [it["id"] for it in shop.get("/v1/context_caches").json()["data"]] == [made["id"]]
        assert bank.get("/v1/context_caches").json()["data"] == []
        path = f"/v1/context_caches/{made['id']}"
        expected = (404, "context_cache_not_found", "context_cache_id")
        for reply in (bank.get(path), bank.delete(path), chat(bank, made["id"])):
            assert error_of(reply) == expected
        same = make(bank, "demo")  # equal words are not shared, either
        assert same["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert hit(chat(shop, made["id"])) >= whole_blocks(made)
        for http, it in ((shop, made), (bank, same)):
            assert http.delete(f"/v1/context_caches/{it['id']}").status_code == 200
    with httpx.Client(base_url=several.url, timeout=ANSWER_SECONDS_MAX) as stranger:
        assert stranger.get("/v1/context_caches").status_code == 401


def test_a_tenant_pins_a_few_only(several: Stack, tenants: dict[str, str]) -> None:
    with door(several.url, tenants["bank"]) as bank:
        made = [make(bank, "demo", pin=True) for _ in range(4)]
        body = {"model": "demo", "messages": RULES, "pin": True}
        refused = bank.post("/v1/context_caches", json=body)
        assert error_of(refused) == (429, "too_many_context_caches", "pin")
        made.append(make(bank, "demo"))
        for it in made:
            assert bank.delete(f"/v1/context_caches/{it['id']}").status_code == 200
        assert bank.get("/v1/context_caches").json()["data"] == []


def test_what_was_computed_for_it_is_metered(several: Stack, tenants: dict[str, str]) -> None:
    def prompt_tokens() -> int:
        used = json.loads(several.cli("usage", "--json", "--tenant", "shop").stdout)
        return sum(row["prompt_tokens"] for row in used["usage"])

    before = prompt_tokens()
    with door(several.url, tenants["shop"]) as shop:
        made = make(shop, "demo")
        wait_until(lambda: prompt_tokens() >= before + made["tokens"], "the usage arrives")
        shop.delete(f"/v1/context_caches/{made['id']}")


def kill_all(stack: Stack, service: str) -> set[int]:
    """Their pids."""
    pids = {int(row["pid"]) for row in stack.members() if row["service"] == service}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def are_all_linked(stack: Stack, killed: set[int]) -> bool:
    """Whether two new job executors can choose between both task executors."""
    rows = [row for row in stack.members() if row["service"] == "job_executor"]
    if len(rows) < 2 or killed & {row["pid"] for row in rows}:
        return False
    links = "deepflow_job_executor_links 2.0"
    urls = [f"http://{row['health_address']}/metrics" for row in rows]
    return all(links in httpx.get(url, timeout=ANSWER_SECONDS_MAX).text for url in urls)


def test_killed_job_executors_cost_nothing(several: Stack, tenants: dict[str, str]) -> None:
    with door(several.url, tenants["shop"]) as shop:
        made = make(shop, "demo")
        killed = kill_all(several, "job_executor")
        wait_until(lambda: are_all_linked(several, killed), "others to know both task executors")
        wait_until(lambda: chat(shop, made["id"]).status_code == 200, "others serve")
        assert hit(chat(shop, made["id"])) >= whole_blocks(made)
        assert shop.delete(f"/v1/context_caches/{made['id']}").status_code == 200


def test_killed_task_executors_cost_one_computation(
    several: Stack, tenants: dict[str, str]
) -> None:
    """What a context promises is what it says; its KV is made anew by whoever needs it."""
    with door(several.url, tenants["shop"]) as shop:
        made = make(shop, "demo", pin=True)
        path = f"/v1/context_caches/{made['id']}"
        kill_all(several, "task_executor")
        wait_until(lambda: shop.get(path).json().get("state") == "cold", "its KV is gone")
        wait_until(lambda: chat(shop, made["id"]).status_code == 200, "a use of it is answered")
        wait_until(lambda: shop.get(path).json()["state"] == "ready", "it is kept again")
        assert shop.get(path).json()["bytes"] >= made["bytes"]
        wait_until(lambda: hit(chat(shop, made["id"])) >= whole_blocks(made), "a use finds it")
        assert shop.delete(path).status_code == 200
