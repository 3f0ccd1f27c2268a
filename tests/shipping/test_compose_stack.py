"""The compose stack as real processes, each told what the file says."""

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from deepflow.demo import MODEL_DIR
from tests.shipping.compose_file import COMPOSE
from tests.shipping.compose_stack import ComposeStack, Replica, compose_stack
from tests.stack import ANSWER_SECONDS_MAX, wait_until

pytestmark = pytest.mark.timeout(600)

SERVICES = ("kv-store", "cluster-manager", "task-executor", "job-executor", "gateway")
MISSING = "generation marker missing"


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    """Up as docs/deploy.md says, with an admin key; nothing deployed."""
    with (
        tempfile.TemporaryDirectory(prefix="compose-") as folder,
        compose_stack(Path(folder)) as it,
    ):
        it.up("nats")
        it.up("redis")
        it.up("redis-disposable")
        wait_until(lambda: accepts(it.running["redis-1"], 6379), "Redis listens")
        for name in SERVICES:
            it.up(name)
        made = it.run_once("new-records")
        assert made.returncode == 0, made.stderr
        it.wait_until_healthy(*(f"{name}-1" for name in SERVICES))
        key = it.run_once("cli", "keys", "create", "--admin")
        assert key.returncode == 0, key.stderr
        it.key = key.stdout.strip()
        yield it


def accepts(replica: Replica, port: int) -> bool:
    assert replica.process.poll() is None, replica.text
    with socket.socket() as probe:
        return probe.connect_ex((replica.address, port)) == 0


def models(stack: ComposeStack) -> list[dict[str, object]]:
    told = stack.run_once("cli", "models", "--json")
    assert told.returncode == 0, told.stderr
    rows: list[dict[str, object]] = json.loads(told.stdout)["models"]
    return rows


def deploy(stack: ComposeStack, *options: str) -> None:
    told = stack.run_once("cli", "deploy", str(MODEL_DIR), "--name", "demo", *options)
    assert told.returncode == 0, told.stdout + told.stderr


def ready_replicas(stack: ComposeStack) -> object:
    return next(row["ready"] for row in models(stack) if row["name"] == "demo")


def ask(stack: ComposeStack) -> httpx.Response:
    body = {"model": "demo", "prompt": "What is a task executor?", "max_tokens": 4}
    key = {"authorization": f"Bearer {stack.key}"}
    return httpx.post(f"{stack.url}/v1/completions", json=body, headers=key, timeout=60)


def test_a_deployment_reaches_task_executors_that_came_by_themselves(stack: ComposeStack) -> None:
    deploy(stack)
    wait_until(lambda: ask(stack).status_code == 200, "everybody knows the model")
    answer = ask(stack)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    row = next(row for row in models(stack) if row["name"] == "demo")
    assert (row["state"], row["ready"]) == ("ready", 1)


def test_every_health_check_of_the_file_passes(stack: ComposeStack) -> None:
    for name in SERVICES:  # one late answer makes no container unhealthy
        wait_until(lambda n=name: stack.health_check(f"{n}-1") == 0, f"{name} is healthy")  # type: ignore[misc]


def test_metrics_need_a_key_only_where_strangers_are(stack: ComposeStack) -> None:
    address = stack.addresses["gateway"]
    inside = httpx.get(f"http://{address}:7200/metrics", timeout=ANSWER_SECONDS_MAX)
    assert inside.status_code == 200 and "deepflow_gateway_" in inside.text
    for url, status in ((f"{stack.url}/metrics", 401), (f"http://{address}:7200/v1/models", 404)):
        assert httpx.get(url, timeout=ANSWER_SECONDS_MAX).status_code == status


def test_prometheus_looks_where_the_services_listen(stack: ComposeStack) -> None:
    config = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        target = job["dns_sd_configs"][0]
        url = f"http://{stack.addresses[target['names'][0]]}:{target['port']}/metrics"
        assert httpx.get(url, timeout=ANSWER_SECONDS_MAX).status_code == 200, url


def test_a_second_beginning_of_the_records_changes_nothing(stack: ComposeStack) -> None:
    before = stack.run_once("new-records").stdout
    assert before == stack.run_once("new-records").stdout != ""
    assert "demo" in {row["name"] for row in models(stack)}


def test_a_restart_of_the_state_keeps_answering_and_forgets_nothing(stack: ComposeStack) -> None:
    stopped = stack.down("cluster-manager-1", "kv-store-1", "redis-1", "nats-1")
    assert stopped["cluster-manager-1"] == stopped["kv-store-1"] == 0
    assert ask(stack).status_code == 200
    for name in ("nats", "redis", "kv-store", "cluster-manager"):
        stack.up(name)
    stack.wait_until_healthy("kv-store-1", "cluster-manager-1")
    assert "demo" in {row["name"] for row in models(stack)}
    assert ask(stack).status_code == 200


def test_lost_records_come_back_from_a_copy(stack: ComposeStack) -> None:
    """The steps of docs/upgrade.md; meanwhile nothing that runs is taken away."""
    copy = stack.folder / "copy"
    stack.down("redis-1")
    shutil.move(stack.redis_data, copy)
    stack.up("redis")
    wait_until(lambda: MISSING in stack.detail("kv-store-1"), "the loss is noticed")
    assert not stack.is_ready("kv-store-1")
    assert ask(stack).status_code == 200
    stack.down("redis-1")
    shutil.rmtree(stack.redis_data)
    shutil.copytree(copy, stack.redis_data)
    stack.up("redis")
    stack.wait_until_healthy("kv-store-1")
    assert stack.down("cluster-manager-1") == {"cluster-manager-1": 0}
    stack.up("cluster-manager")
    stack.wait_until_healthy("cluster-manager-1")
    assert "demo" in {row["name"] for row in models(stack)}
    assert ask(stack).status_code == 200


def test_task_executors_come_and_go(stack: ComposeStack) -> None:
    """`docker compose up --scale task-executor=2`, and one of them stopped."""
    deploy(stack, "--replicas", "2", "--no-wait")
    stack.up("task-executor", 2)
    wait_until(lambda: ready_replicas(stack) == 2, "the newcomer holds the model")
    assert stack.down("task-executor-1") == {"task-executor-1": 0}
    wait_until(lambda: ask(stack).status_code == 200, "the newcomer answers")
    wait_until(lambda: ready_replicas(stack) == 1, "the one that left is known to be gone")


def test_nobody_was_refused_what_its_part_needs(stack: ComposeStack) -> None:
    """Runs late: the users of NATS and Redis may do all that was done so far."""
    for path in sorted(stack.folder.glob("*.log")):
        text = path.read_text(errors="replace").lower()
        assert "permissions violation" not in text and "noperm" not in text, path.name


def test_all_end_when_they_are_asked_to(stack: ComposeStack) -> None:
    names = [name for name in stack.running if not name.startswith(("nats", "redis"))]
    order = ("gateway", "job-executor", "task-executor", "cluster-manager", "kv-store")
    names.sort(key=lambda name: order.index(name.rpartition("-")[0]))
    assert stack.down(*names) == dict.fromkeys(names, 0)
