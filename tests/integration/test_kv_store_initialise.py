"""A new Redis is marked by hand, once, and never one that lost its marker."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis import Redis

from services.kv_store.records import keys
from tests.servers import ServerProcess, free_port, redis_server


@pytest.fixture
def redis() -> Iterator[ServerProcess]:
    with redis_server(password="secret") as server:
        yield server


def initialise(url: str, password: str = "secret") -> subprocess.CompletedProcess[str]:
    settings = {"DEEPFLOW_KV_STORE_REDIS_URL": url, "DEEPFLOW_KV_STORE_REDIS_PASSWORD": password}
    return subprocess.run(
        [sys.executable, "-m", "services.kv_store.initialise"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_empty_redis_gets_one_generation_for_ever(redis: ServerProcess) -> None:
    first, second = initialise(redis.url), initialise(redis.url)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    with Redis.from_url(redis.url, password=redis.password) as client:
        marker = client.get(keys.GENERATION)
    assert isinstance(marker, bytes) and marker.decode() in first.stdout


def test_records_without_their_marker_are_not_called_new(redis: ServerProcess) -> None:
    with Redis.from_url(redis.url, password=redis.password) as client:
        client.zadd(keys.INDEX, {"deployments/demo": 0})
        refused = initialise(redis.url)
        assert client.get(keys.GENERATION) is None
    assert refused.returncode == 1
    assert "the record space is not empty" in refused.stderr


@pytest.mark.parametrize(
    ("url", "password", "code", "words"),
    [
        ("redis://127.0.0.1:{nobody}/0", "secret", 1, "Redis is not answering"),
        ("{real}", "wrong", 1, "refuses the kv_store's password"),
        ("http://127.0.0.1", "secret", 2, "DEEPFLOW_KV_STORE_REDIS_URL = (hidden)"),
    ],
)
def test_what_a_person_can_mend_is_said(
    redis: ServerProcess, url: str, password: str, code: int, words: str
) -> None:
    told = initialise(url.format(nobody=free_port(), real=redis.url), password)
    assert told.returncode == code
    assert words in told.stderr and "Traceback" not in told.stderr
