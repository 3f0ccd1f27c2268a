"""Servers of state that die, stand still or forget, under streams: nobody else forgets with them.

Limits on silence are short here, so that a short silence is longer than all that could end anybody;
the soak has the long form.
"""

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from deepflow.v1 import cluster_pb2, store_pb2
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from tests.chaos import trees
from tests.chaos.disturbances import KILL, MANAGERS, SUSPEND, Disturbance, Disturber
from tests.chaos.load import Load
from tests.chaos.mesh import Mesh
from tests.chaos.redis_access import Backup, operator
from tests.stack import Stack, running_stack, wait_until

pytestmark = pytest.mark.timeout(600)

DEVICE = ("--device", "emulated:ascend-910b")
EACH_TWICE = ("gateways", "job-executors", "task-executors", "cluster-managers")
# Yet longer than a busy machine lets anybody wait for a processor.
LIMIT_SECONDS = 3.0
SHORT = {
    "CLUSTER_MANAGER_MEMBER_TIMEOUT_SECONDS": str(LIMIT_SECONDS),
    "CLUSTER_MANAGER_LEASE_SECONDS": str(LIMIT_SECONDS),
    "CLUSTER_MANAGER_HEARTBEAT_INTERVAL_SECONDS": "0.2",
    "CLUSTER_MANAGER_STORE_CALL_SECONDS": "1",
    "KV_STORE_PROBE_SECONDS": "0.1",
}
SILENCE_SECONDS = 2.5 * LIMIT_SECONDS
CALL_SECONDS_MAX = 30.0
DISPOSABLE = "deepflow:disposable:*"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = [*DEVICE, "--liveness-seconds", "0"]
    for kind in EACH_TWICE:
        options += [f"--{kind}", "2"]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SHORT.items():
            environment.setenv(f"DEEPFLOW_{name}", value)
        with running_stack(tmp_path_factory.mktemp("state") / "data", *options) as running:
            yield running


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """From now on nobody without one gets in."""
    made: str = json.loads(stack.cli("keys", "create", "--tenant", "shop", "--json").stdout)["key"]
    return made


@pytest.fixture(scope="module")
def mesh(stack: Stack, key: str) -> Mesh:
    mesh = Mesh(stack)
    wait_until(mesh.is_well, "a well mesh")
    for url in mesh.gateways:
        wait_until(lambda u=url: asked(u, key) == 200, "the key is known")  # type: ignore[misc]
    return mesh


@pytest.fixture
def nobody_goes(mesh: Mesh) -> Iterator[None]:
    """Nor is anybody started anew."""
    before = mesh.restarts()
    yield
    assert mesh.restarts() == before
    assert mesh.given_up() == []


def asked(url: str, key: str = "") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "demo", "prompt": "Once", "max_tokens": 2}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=30).status_code


def load_on(mesh: Mesh, key: str) -> Load:
    return Load(mesh.gateways, clients=4, max_tokens=150, key=key)


def put(mesh: Mesh, name: str, value: bytes) -> None:
    """Returns once the kv_store has confirmed it."""
    call(mesh, "Put", store_pb2.PutRecordRequest(key=name, value=value))


def call(mesh: Mesh, method: str, request: Any) -> Any:
    with grpc.insecure_channel(mesh.address("kv-store")) as channel:
        metadata = (("authorization", f"Bearer {mesh.token}"),)
        stub = RecordStoreServiceStub(channel)
        return getattr(stub, method)(request, metadata=metadata, timeout=CALL_SECONDS_MAX)


def undeploy(mesh: Mesh, leader: str) -> None:
    with grpc.insecure_channel(mesh.address(leader)) as channel:
        ClusterManagerServiceStub(channel).Undeploy(
            cluster_pb2.UndeployRequest(name="demo"),
            metadata=(("authorization", f"Bearer {mesh.token}"),),
            timeout=CALL_SECONDS_MAX,
        )


@pytest.mark.parametrize("victim", ["nats", "redis", "kv-store", MANAGERS])
def test_a_silence_fails_nothing_and_removes_nobody(
    mesh: Mesh, key: str, nobody_goes: None, victim: str
) -> None:
    with load_on(mesh, key) as load:
        Disturber(mesh).apply(Disturbance(victim, SUSPEND, SILENCE_SECONDS))
    assert load.failures == [] and load.answers >= 4
    assert len(load.texts) == 1


def test_killing_who_keeps_the_records_loses_none(mesh: Mesh, key: str, nobody_goes: None) -> None:
    """The kv_store and Redis, each right after it confirmed a write."""
    written = {}
    disturber = Disturber(mesh)
    with load_on(mesh, key) as load:
        for number, victim in enumerate(["redis", "kv-store"]):
            name, value = f"chaos/{number}", random.Random(number).randbytes(2000)
            put(mesh, name, value)
            disturber.apply(Disturbance(victim, KILL))
            written[name] = value
            kept = mesh.records()
            assert {it: kept[it] for it in written} == written
    assert load.failures == []
    for name in written:
        call(mesh, "Delete", store_pb2.DeleteRecordRequest(key=name))


def test_every_write_is_on_the_disk_before_it_is_confirmed(stack: Stack, mesh: Mesh) -> None:
    with operator(stack.data_dir) as redis:
        assert redis.config_get("append*")["appendonly"] == "yes"
        assert redis.config_get("append*")["appendfsync"] == "always"
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_flushing_what_is_disposable_costs_nothing_but_copies(
    stack: Stack, mesh: Mesh, key: str, nobody_goes: None
) -> None:
    records = mesh.records().keys()
    with load_on(mesh, key) as load, operator(stack.data_dir) as redis:
        wait_until(lambda: bool(redis.keys(DISPOSABLE)), "copies of KV indexes")
        redis.delete(*redis.keys(DISPOSABLE))
        answers = load.answers
        wait_until(lambda: load.answers >= answers + 12, "answers without the copies")
    assert load.failures == []
    assert mesh.records().keys() == records
    wait_until(lambda: trees.agree(mesh), "trees that are the task executors' own indexes")


def test_wiped_records_are_away_and_not_empty(
    stack: Stack, mesh: Mesh, key: str, nobody_goes: None, tmp_path: Path
) -> None:
    """Until they are back, which a copy of Redis' folder is enough for."""
    known = mesh.records()
    deployments = {row["name"] for row in mesh.status()["deployments"]}
    backup = Backup(mesh, stack.data_dir, tmp_path / "copy")
    with load_on(mesh, key) as load:
        with operator(stack.data_dir) as redis:
            redis.flushall()
        for url in mesh.gateways:
            wait_until(lambda u=url: asked(u, "df-unknown") == 503, "503 for an unknown key")  # type: ignore[misc]
            assert asked(url, key) == 200
            assert asked(url) == 401
        with pytest.raises(grpc.RpcError, match="generation marker missing"):
            mesh.records()
        (leader,) = mesh.leaders()  # nobody takes over from it now
        with pytest.raises(grpc.RpcError, match="generation marker missing"):
            undeploy(mesh, leader)
        # Nor does a new process, which knows nothing, take them for empty.
        pid = mesh.pid(leader)
        mesh.signal(pid, signal.SIGKILL)
        wait_until(lambda: mesh.pid(leader) not in (0, pid), "another cluster manager")
        wait_until(lambda: "generation marker" in mesh.detail(leader), "its reason to wait")
        answers = load.answers
        wait_until(lambda: load.answers >= answers + 4, "answers without any records")
        assert asked(mesh.gateways[0], "df-unknown") == 503
        assert mesh.leaders() == []
        backup.restore()
        wait_until(mesh.is_well, "a well mesh")
        for url in mesh.gateways:
            wait_until(lambda u=url: asked(u, "df-unknown") == 401, "401 again")  # type: ignore[misc]
    assert load.failures == [] and len(load.texts) == 1
    assert mesh.records().keys() == known.keys()
    assert {row["name"] for row in mesh.status()["deployments"]} == deployments
    scaled = stack.cli("scale", "demo", "2", check=False)
    assert scaled.returncode == 0, scaled.stderr
