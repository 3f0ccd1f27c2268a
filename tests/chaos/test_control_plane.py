"""What operators do to a stack that serves, and what its clients feel of it: nothing."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepflow.cli.status import collect
from deepflow.demo import MODEL_DIR
from deepflow.local.client import SupervisorClient
from deepflow.local.data_dir import DataDir
from tests.chaos.load import Load
from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack, wait_until

pytestmark = pytest.mark.timeout(600)

DEVICE = ("--device", "emulated:ascend-910b")
SEVERAL = (
    *("--cluster-managers", "2", "--gateways", "2"),
    *("--job-executors", "2", "--task-executors", "2", "--liveness-seconds", "4"),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("control") / "data", *DEVICE, *SEVERAL) as running:
        yield running


def status(stack: Stack) -> dict[str, Any]:
    """As `deepflow status --json`, without a process for each look."""
    with SupervisorClient(DataDir(stack.data_dir)) as client:
        return collect(client)


def load_on(stack: Stack, clients: int = 4, max_tokens: int = 60) -> Load:
    return Load(status(stack)["gateways"], clients=clients, max_tokens=max_tokens)


def rows_of(stack: Stack, service: str) -> list[dict[str, Any]]:
    return [row for row in status(stack)["processes"] if row["service"] == service]


def numbers(stack: Stack) -> list[int]:
    return [len(rows_of(stack, it)) for it in ("task_executor", "job_executor")]


def is_well(row: dict[str, Any]) -> bool:
    return row["state"] == "ready" or "standby" in row["detail"]


def wait_until_replaced(stack: Stack, old: dict[str, Any]) -> None:
    """By the same process anew, or, for a replica, by another."""

    def is_replaced() -> bool:
        rows = rows_of(stack, old["service"])
        return len(rows) == 2 - (old["service"] == "kv_store") and all(
            is_well(row) and row["pid"] != old["pid"] for row in rows
        )

    wait_until(is_replaced, f"{old['name']} to be replaced")


def exit_codes(stack: Stack, name: str) -> list[str]:
    """Of every life that the supervisor saw end."""
    log = (stack.data_dir / "logs/supervisor.log").read_text()
    lines = log.rpartition("\n")[0].splitlines()  # the last one may be half written
    messages = [str(json.loads(line)["message"]) for line in lines]
    return [m.split()[4].rstrip(";") for m in messages if m.startswith(f"{name} ended with code")]


def wait_until_known(stack: Stack, model: str) -> None:
    """Gateways and job executors hear of it a moment after the command that deployed it."""
    body = {"model": model, "prompt": "hi", "max_tokens": 1}
    for url in status(stack)["gateways"]:

        def is_known(url: str = f"{url}/v1/completions") -> bool:
            asked = [httpx.post(url, json=body, timeout=ANSWER_SECONDS_MAX) for _ in range(4)]
            return all(it.status_code == 200 for it in asked)  # spread over the job executors

        wait_until(is_known, f"{url} to know {model}")


def leader(stack: Stack) -> dict[str, Any]:
    return next(it for it in rows_of(stack, "cluster_manager") if it["state"] == "ready")


def test_killing_the_leader_changes_nothing_for_clients(stack: Stack, tmp_path: Path) -> None:
    wait_until(
        lambda: any("standby" in it["detail"] for it in rows_of(stack, "cluster_manager")),
        "the standby to be a member",
    )
    shutil.copytree(MODEL_DIR, tmp_path / "second")
    pid = leader(stack)["pid"]
    with load_on(stack, clients=16, max_tokens=200) as load:
        os.kill(pid, signal.SIGKILL)
        stack.cli("deploy", str(tmp_path / "second"), *DEVICE)
    assert load.failures == [] and load.answers >= 16
    assert len(load.texts) == 1
    assert leader(stack)["pid"] != pid
    wait_until_known(stack, "second")
    with Load(status(stack)["gateways"], clients=2, max_tokens=4, model="second") as second:
        pass
    assert second.failures == []
    stack.cli("undeploy", "second")


def test_scaling_under_load_drops_nothing(stack: Stack) -> None:
    with load_on(stack) as load:
        for count in ("1", "2"):
            with ThreadPoolExecutor() as at_once:
                kinds = ("demo", "job-executors")
                asked = [at_once.submit(stack.cli, "scale", what, count) for what in kinds]
            assert [it.result().returncode for it in asked] == [0, 0]
            wait_until(lambda n=int(count): numbers(stack) == [n, n], f"{count} of each")  # type: ignore[misc]
    assert load.failures == []
    refused = stack.cli("scale", "nobody", "2", check=False)
    assert refused.returncode == 2 and "no deployment 'nobody'" in refused.stderr


def test_a_changed_deployment_under_load_drops_nothing(stack: Stack) -> None:
    def held() -> set[str]:
        return {row["dtype"] for row in status(stack)["deployments"] if row["name"] == "demo"}

    assert held() == {"bfloat16"}
    with load_on(stack) as load:
        change = (*DEVICE, "--replicas", "2", "--dtype", "float16")
        stack.cli("deploy", str(MODEL_DIR), "--name", "demo", *change)
    assert load.failures == []
    assert held() == {"float16"}


def test_a_rolling_restart_of_everything_drops_nothing(stack: Stack) -> None:
    services = ("kv_store", "cluster_manager", "task_executor", "job_executor", "gateway")
    with load_on(stack) as load:
        for service in services:
            for it in rows_of(stack, service):
                lives_before = len(exit_codes(stack, it["name"]))
                os.kill(it["pid"], signal.SIGTERM)
                wait_until_replaced(stack, it)
                assert exit_codes(stack, it["name"])[lives_before] == "0", it["name"]
    assert load.failures == []


def test_suspended_processes_are_seen_and_replaced(stack: Stack) -> None:
    victims = [rows_of(stack, it)[0] for it in ("job_executor", "task_executor", "gateway")]
    for it in victims:
        os.kill(it["pid"], signal.SIGSTOP)
    for it in victims:
        wait_until_replaced(stack, it)
        assert exit_codes(stack, it["name"])[-1] == str(-signal.SIGKILL)
    stack.wait_until_it_answers()
