"""More and fewer gateways while clients ask: whoever is let in is answered."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deepflow.access.secrets import cluster_key
from deepflow.cli.status import collect
from deepflow.local.client import SupervisorClient
from deepflow.local.data_dir import DataDir
from tests.chaos.load import Load
from tests.stack import Stack, running_stack, wait_until

pytestmark = pytest.mark.timeout(600)

OPTIONS = ("--device", "emulated:ascend-910b", "--gateways", "2", "--cluster-managers", "2")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("gateways") / "data", *OPTIONS) as running:
        yield running


def status(stack: Stack) -> dict[str, Any]:
    """As `deepflow status --json`, without a process for each look."""
    with SupervisorClient(DataDir(stack.data_dir)) as client:
        return collect(client)


def urls(stack: Stack) -> list[str]:
    found: list[str] = status(stack)["gateways"]
    return found


def rows_of(stack: Stack, service: str) -> list[dict[str, Any]]:
    return [row for row in status(stack)["processes"] if row["service"] == service]


def wait_for(stack: Stack, count: int) -> None:
    def is_so() -> bool:
        rows = rows_of(stack, "gateway")
        return len(rows) == count and all(row["state"] == "ready" for row in rows)

    wait_until(is_so, f"{count} gateways")


def end_code(stack: Stack, name: str) -> str:
    """Of its last life, as the supervisor saw it end."""
    log = (stack.data_dir / "logs/supervisor.log").read_text()
    return log.rpartition(f"{name} ended with code ")[2].partition('"')[0]


def test_scaling_gateways_under_load_drops_nothing(stack: Stack) -> None:
    assert urls(stack)[0] == stack.url and len(urls(stack)) == 2
    with Load(urls(stack), clients=3, max_tokens=40) as load:
        stack.cli("scale", "gateways", "3")
        wait_for(stack, 3)
        third = urls(stack)[2]
        with Load([third], clients=1, max_tokens=4) as through_the_third:
            pass
        with Load(urls(stack), clients=3, max_tokens=900) as long_ones:
            scaled = stack.cli("scale", "gateways", "1")
        wait_for(stack, 1)
    assert load.failures == [] and long_ones.failures == [] and through_the_third.failures == []
    assert load.answers and long_ones.answers and through_the_third.answers
    assert f"gateways: 1 ({stack.url.removeprefix('http://')})" in scaled.stdout
    assert urls(stack) == [stack.url]
    assert [end_code(stack, f"gateway-{i}") for i in (1, 2)] == ["0", "0"]


def test_a_leader_that_dies_while_it_scales_down_drops_nothing(stack: Stack) -> None:
    key = cluster_key(DataDir(stack.data_dir).read_secrets().cluster_token)
    route, admin = "/v1/admin/services/gateways", {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=stack.url, headers=admin, timeout=60) as http:
        asked = http.put(route, json={"count": 2})
        assert asked.is_success and asked.json()["count"] == 2
        wait_for(stack, 2)
        with Load(urls(stack), clients=3, max_tokens=200) as load:
            leader = next(it for it in rows_of(stack, "cluster_manager") if it["state"] == "ready")
            assert http.put(route, json={"count": 1}).is_success
            os.kill(leader["pid"], signal.SIGKILL)
            wait_for(stack, 1)

        def is_kept() -> bool:
            kept = http.get(route).json()
            return (kept.get("count"), kept.get("ready")) == (1, 1)

        wait_until(is_kept, "the new leader to know the one that stays")
    assert load.failures == [] and load.answers
    assert urls(stack) == [stack.url]


def test_what_cannot_be_scaled_says_what_can(stack: Stack) -> None:
    refused = stack.cli("scale", "gateway", "2", check=False)
    assert refused.returncode == 2 and "did you mean 'gateways'?" in refused.stderr
    refused = stack.cli("undeploy", "nobody", check=False)
    assert refused.returncode == 2 and "there are: demo" in refused.stderr
