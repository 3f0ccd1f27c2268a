"""API keys on a real stack: made, used, limited, revoked; with Redis gone; restarted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from deepflow.cli.common import EXIT_BAD_OPTION
from tests.servers import free_port
from tests.stack import (
    ANSWER_SECONDS_MAX,
    COMMAND_SECONDS_MAX,
    DOWN_SECONDS_MAX,
    Stack,
    running_stack,
    wait_until,
)

ZERO = ("--device", "emulated:zero")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "data"


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[Stack]:
    with running_stack(folder, *ZERO, "--gateways", "2") as running:
        yield running


def made(stack: Stack, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(stack.cli("keys", "create", "--json", *options).stdout)
    return answer


def complete(url: str, key: str = "", **body: Any) -> httpx.Response:
    body = {"model": "demo", "prompt": "hello", "max_tokens": 4, **body}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(
        f"{url}/v1/completions", json=body, headers=headers, timeout=ANSWER_SECONDS_MAX
    )


def urls(stack: Stack) -> list[str]:
    found: list[str] = stack.status()["gateways"]
    return found


def test_the_life_of_a_key(stack: Stack) -> None:
    first, second = urls(stack)
    assert complete(first).status_code == 200  # nobody made a key yet
    shown = stack.cli("keys", "create", "--tenant", "shop", "--label", "till").stdout.strip()
    assert shown.startswith("df-") and len(shown) == 46
    for url in (first, second):
        wait_until(lambda url=url: complete(url).status_code == 401, f"{url} asks for a key")  # type: ignore[misc]
        with openai.OpenAI(base_url=f"{url}/v1", api_key=shown, max_retries=0) as client:
            reply = client.completions.create(model="demo", prompt="hello", max_tokens=4)
            assert reply.usage is not None and reply.usage.completion_tokens == 4
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="df-no", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        assert httpx.get(f"{url}/health", timeout=ANSWER_SECONDS_MAX).status_code == 200
    listed = json.loads(stack.cli("keys", "list", "--json").stdout)
    (row,) = listed["keys"]
    assert row["label"] == "till" and shown not in str(listed)
    assert stack.cli("chat", "hello", "--max-tokens", "4").returncode == 0
    stack.cli("keys", "revoke", row["id"])
    for url in (first, second):
        wait_until(lambda url=url: complete(url, shown).status_code == 401, "it is revoked")  # type: ignore[misc]
    assert stack.cli("keys", "revoke", "nobody", check=False).returncode == EXIT_BAD_OPTION


def test_limits_are_those_of_all_gateways_together(stack: Stack) -> None:
    first, second = urls(stack)
    key = made(stack, "--tenant", "tight", "--rpm", "4", "--models", "demo")["key"]
    wait_until(lambda: complete(first, key, model="other").status_code == 403, "403")
    wait_until(lambda: complete(second, key, model="other").status_code == 403, "403")
    replies = [complete(url, key) for _ in range(5) for url in (first, second)]
    admitted = [reply for reply in replies if reply.status_code == 200]
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(admitted) + len(refused) == 10
    assert 4 <= len(admitted) <= 8  # a minute may end between them
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].headers["x-ratelimit-limit-requests"] == "4"
    changed = json.loads(stack.cli("keys", "limits", "tight", "--rpm", "0", "--json").stdout)
    assert (changed["requests_per_minute"], changed["allowed_models"]) == (None, ["demo"])
    for url in (first, second):
        wait_until(lambda url=url: complete(url, key).status_code == 200, "no limit")  # type: ignore[misc]


def test_admin_keys_and_usage(stack: Stack) -> None:
    (first, _) = urls(stack)
    admin = made(stack, "--admin")
    plain = made(stack, "--tenant", "metered")

    def get(path: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{first}{path}", headers=headers, timeout=ANSWER_SECONDS_MAX).status_code

    wait_until(lambda: get("/v1/admin/usage", admin["key"]) == 200, "the admin key opens")
    wait_until(lambda: get("/v1/admin/usage", plain["key"]) == 403, "the other one is known")
    assert get("/metrics", plain["key"]) == 403 and get("/metrics", admin["key"]) == 200
    for _ in range(3):
        assert complete(first, plain["key"]).status_code == 200

    def is_metered() -> bool:
        answer = stack.cli("usage", "--tenant", "metered", "--json").stdout
        rows = json.loads(answer)["usage"]
        return [(row["requests"], row["completion_tokens"]) for row in rows] == [(3, 12)]

    wait_until(is_metered, "three requests of four tokens are metered")
    assert plain["id"] in stack.cli("usage", "--key", plain["id"]).stdout


def test_redis_stands_still_and_known_keys_go_on(stack: Stack) -> None:
    (first, _) = urls(stack)
    key = made(stack, "--tenant", "known", "--rpm", "100000")["key"]
    wait_until(lambda: complete(first, key).status_code == 200, "the key is known")
    redis = psutil.Process(stack.pid_of("redis"))
    redis.suspend()
    try:
        wait_until(lambda: complete(first, "df-unknown").status_code == 503, "503 for unknown keys")
        assert complete(first, key).status_code == 200
        assert complete(first).status_code == 401
    finally:
        redis.resume()
    wait_until(lambda: complete(first, "df-unknown").status_code == 401, "401 again")


def test_the_world_is_served_with_keys_only(stack: Stack, folder: Path, tmp_path: Path) -> None:
    """Last: it ends the stack. A stack with keys comes up again, also for the world."""
    key = made(stack)["key"]
    stack.cli("down")
    stack.process.wait(DOWN_SECONDS_MAX)
    with running_stack(folder, *ZERO, "--host", "0.0.0.0") as again:
        assert complete(again.url).status_code == 401
        assert complete(again.url, key).status_code == 200
    command = [sys.executable, "-m", "deepflow.cli.main", "up", "--host", "0.0.0.0", *ZERO]
    command += ["--port", str(free_port()), "--data-dir", str(tmp_path / "new")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)
    assert refused.returncode == 1
    assert "deepflow keys create --admin" in refused.stdout + refused.stderr
