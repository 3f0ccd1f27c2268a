"""Deployments, members and sizes over HTTP: a real gateway, cluster manager and kv_store."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepflow.access.records import AccessRecords
from deepflow.access.secrets import cluster_key
from deepflow.core.fetched_models import MANIFEST
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.server import ClusterManagerServer
from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer
from tests.integration.cluster_manager_rig import (
    SECONDS,
    TOKEN,
    Cluster,
    running_cluster,
    write_model,
)
from tests.servers import free_port, until

ADMIN = {"authorization": f"Bearer {cluster_key(TOKEN)}"}
DEMO = "/v1/admin/deployments/demo"
ORG = "/v1/admin/deployments/org/demo"


@dataclass
class Office:
    """A cluster, and an admin before one of its gateways."""

    cluster: Cluster
    gateway: GatewayServer
    http: httpx.AsyncClient

    @property
    def source(self) -> str:
        return str(self.cluster.folder / "model")

    async def put(self, path: str = DEMO, **body: Any) -> httpx.Response:
        return await self.http.put(path, json=body)

    async def deploy(self, path: str = DEMO, **body: Any) -> httpx.Response:
        usual = {"source": self.source, "device": "emulated:zero"}
        return await self.put(path, **usual | body)

    async def state(self, path: str = DEMO) -> dict[str, Any]:
        row: dict[str, Any] = (await self.http.get(path)).json()
        return row

    async def until_ready(self, replicas: int, path: str = DEMO) -> None:
        async def is_ready() -> bool:
            row = await self.state(path)
            return row["state"] == "ready" and len(row["task_executors"]) == replicas

        await until(is_ready, what=f"{path} to be ready")


@contextlib.asynccontextmanager
async def gateway_of(cluster: Cluster, **changes: Any) -> AsyncIterator[GatewayServer]:
    shared = cluster.common.model_dump()
    shared = {name: it for name, it in shared.items() if name in GatewayConfig.model_fields}
    gateway = GatewayServer(GatewayConfig(**shared | {"port": 0, "id": "gateway-9"} | changes))
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.stop()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with running_cluster(tmp_path) as cluster, gateway_of(cluster) as gateway:
        url = f"http://{gateway.address}"
        async with httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=SECONDS) as http:
            yield Office(cluster, gateway, http)


def error(reply: httpx.Response) -> tuple[int, str, str | None]:
    said = reply.json()["error"]
    return reply.status_code, said["code"], said["param"]


async def test_a_deployment_from_its_first_to_its_last_day(office: Office) -> None:
    asked = await office.deploy(replicas=2, dtype="bfloat16")
    row = asked.json()
    assert asked.status_code == (200 if row["state"] == "ready" else 202)
    assert (row["object"], row["name"], row["replicas"]) == ("deployment", "demo", 2)
    await office.until_ready(2)
    again = await office.deploy(replicas=2, dtype="bfloat16")
    assert again.status_code == 200 and again.json()["revision"] == row["revision"]
    assert [it["state"] for it in again.json()["task_executors"]] == ["ready", "ready"]
    # What is not named stays.
    changed = (await office.put(kv_memory="1GiB", max_tokens=128)).json()
    assert (changed["replicas"], changed["device"]) == (2, "emulated:zero")
    (deployment,) = (await office.cluster.view()).deployments
    assert (deployment.kv_bytes, deployment.max_tokens) == (1 << 30, 128)
    assert (deployment.dtype, deployment.source) == ("bfloat16", office.source)
    scaled = await office.put(f"{DEMO}/scale", replicas=1)
    assert scaled.status_code in (200, 202) and scaled.json()["replicas"] == 1
    await office.until_ready(1)
    listed = (await office.http.get("/v1/admin/deployments")).json()
    assert [it["name"] for it in listed["data"]] == ["demo"]
    gone = await office.http.delete(DEMO)
    assert gone.json() == {"object": "deployment", "name": "demo", "deleted": True}
    assert error(await office.http.delete(DEMO)) == (404, "deployment_not_found", "name")
    assert error(await office.http.get(DEMO)) == (404, "deployment_not_found", "name")


async def test_ten_admins_at_one_time_all_get_what_they_asked_for(office: Office) -> None:
    """At two gateways, each another field than the next: none takes back what others changed."""
    assert (await office.deploy(policy="slo")).status_code in (200, 202)
    changes: list[dict[str, Any]] = [
        {"max_tokens": 128},
        {"kv_memory": "1GiB"},
        {"kv_dram": "16MiB"},
        {"dtype": "bfloat16"},
        {"kv_disk": "32MiB"},
        {"tpot_ms": 50},
        {"ttft_ms": 900},
        {"tool_format": "hermes"},
        {"replicas": 2},
        {"device": "emulated:zero"},
    ]
    async with gateway_of(office.cluster, id="gateway-8") as other:
        url = f"http://{other.address}"
        async with httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=SECONDS) as http:
            replies = await asyncio.gather(
                *(office.put(**change) for change in changes[:5]),
                *(http.put(DEMO, json=change) for change in changes[5:]),
            )
    assert {reply.status_code for reply in replies} <= {200, 202}, [it.text for it in replies]
    (held,) = (await office.cluster.view()).deployments
    assert (held.max_tokens, held.kv_bytes, held.dtype) == (128, 1 << 30, "bfloat16")
    assert (held.replicas, held.tool_format) == (2, "hermes")
    engine = held.engine
    assert (engine.policy, engine.tpot_ms, engine.ttft_ms) == ("slo", 50, 900)
    assert (engine.kv_dram_bytes, engine.kv_disk_bytes) == (16 << 20, 32 << 20)


def keep_fetched(models: Path, commit: str) -> Path:
    """As `deepflow deploy org/name` leaves it."""
    folder = models / "org/name" / commit
    folder.mkdir(parents=True)
    write_model(folder)
    (folder / MANIFEST).write_text(json.dumps({"config.json": len(config_of(folder))}))
    (models / "org/name/refs").mkdir(exist_ok=True)
    (models / "org/name/refs/main").write_text(commit)
    return folder


def config_of(folder: Path) -> bytes:
    return (folder / "config.json").read_bytes()


async def test_a_model_that_was_fetched_may_be_named_by_its_id(office: Office) -> None:
    absent = await office.deploy(source="org/name")
    assert error(absent)[::2] == (400, "source") and "deepflow deploy org/name" in absent.text
    folder = keep_fetched(office.cluster.folder / "fetched", "c" * 40)
    assert (await office.deploy(source="org/name")).json()["source"] == str(folder)
    pinned = (await office.deploy(source=f"org/name@{'c' * 40}")).json()
    assert (pinned["source"], pinned["revision"]) == (str(folder), 1)
    (folder / "config.json").unlink()  # no longer what was fetched
    assert error(await office.deploy(source="org/name"))[::2] == (400, "source")


async def test_a_name_may_hold_a_slash(office: Office) -> None:
    assert (await office.deploy(ORG)).is_success
    await office.until_ready(1, ORG)
    assert (await office.put(f"{ORG}/scale", replicas=2)).json()["name"] == "org/demo"
    assert (await office.http.get(ORG.replace("org/", "org%2F"))).json()["replicas"] == 2


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    (DEMO, {"replicas": 1}, "source"),  # a new one
    (DEMO, {"source": 5}, "source"),
    (DEMO, {"source": ""}, "source"),
    (DEMO, {"source": "models/demo"}, "source"),
    (DEMO, {"source": "org/name"}, "source"),
    (DEMO, {"source": "/no/such/folder"}, "source"),
    (DEMO, {"source": "/no\0where"}, "source"),
    (DEMO, {"source": f"/{'deep/' * 800}"}, "source"),
    (DEMO, {"source": "/etc/passwd"}, "source"),
    (DEMO, {"replicas": 0}, "replicas"),
    (DEMO, {"replicas": 65}, "replicas"),
    (DEMO, {"replicas": "2"}, "replicas"),
    (DEMO, {"replicas": True}, "replicas"),
    (DEMO, {"device": "tpu"}, "device"),
    (DEMO, {"dtype": "int3"}, "dtype"),
    (DEMO, {"dtype": "b" * 1000}, "dtype"),
    (DEMO, {"max_tokens": -1}, "max_tokens"),
    (DEMO, {"max_tokens": 10**6}, "max_tokens"),
    (DEMO, {"kv_memory": "much"}, "kv_memory"),
    (DEMO, {"kv_memory": "2000TiB"}, "kv_memory"),
    (DEMO, {"kv_memory": 5}, "kv_memory"),
    (DEMO, {"tool_format": "morse"}, "tool_format"),
    (DEMO, {"replica": 1}, "replica"),
    ("/v1/admin/deployments/a%20b", {}, "name"),
    ("/v1/admin/deployments/%00", {}, "name"),
    (f"/v1/admin/deployments/{'n' * 200}", {}, "name"),
    ("/v1/admin/deployments/a%2F..%2Fb", {}, "name"),
    (f"{DEMO}/scale", {}, "replicas"),
    (f"{DEMO}/scale", {"replicas": 0}, "replicas"),
    (f"{DEMO}/scale", {"count": 1}, "count"),
    ("/v1/admin/services/gateways", {}, "count"),
    ("/v1/admin/services/gateways", {"count": 65}, "count"),
    ("/v1/admin/services/gateways", {"count": 1.5}, "count"),
)


async def test_wrong_bodies_name_the_field_and_change_nothing(office: Office) -> None:
    before = await office.cluster.view()
    for path, body, param in WRONG:
        is_bare = "scale" in path or "services" in path or param == "source"
        usual = {} if is_bare else {"source": office.source, "device": "emulated:zero"}
        reply = await office.put(path, **usual | body)
        assert error(reply)[::2] == (400, param), (body, reply.text)
    after = await office.cluster.view()
    assert not after.deployments and after.sizes == before.sizes
    assert error(await office.put(f"{DEMO}/scale", replicas=1)) == (
        *(404, "deployment_not_found", "name"),
    )
    assert error(await office.put("/v1/admin/services/kv-store", count=2)) == (
        *(404, "service_not_found", "kind"),
    )
    wrong_word = await office.http.get("/v1/admin/members?kind=teapot")
    assert error(wrong_word)[::2] == (400, "kind")
    too_large = await office.put(DEMO, source="/" + "x" * (64 << 10))
    assert error(too_large)[:2] == (413, "body_too_large")
    wrong_method = await office.http.post(DEMO, json={})
    assert wrong_method.status_code == 405
    assert wrong_method.json()["error"]["message"].endswith("use GET or PUT or DELETE")


async def test_an_embedding_models_refusal_is_in_this_apis_words(office: Office) -> None:
    encoder = office.cluster.folder / "encoder"
    write_model(encoder)
    config = json.loads((encoder / "config.json").read_text())
    config |= {"architectures": ["BertModel"], "model_type": "bert", "layer_norm_eps": 1e-12}
    (encoder / "config.json").write_text(json.dumps(config))
    reply = await office.put(source=str(encoder), kv_memory="1GiB")
    assert error(reply)[::2] == (400, "kv_memory")


ROUTES = (
    ("GET", "/v1/admin/deployments"),
    ("GET", DEMO),
    ("PUT", DEMO),
    ("DELETE", DEMO),
    ("PUT", f"{DEMO}/scale"),
    ("GET", "/v1/admin/members"),
    ("GET", "/v1/admin/services"),
    ("GET", "/v1/admin/services/gateways"),
    ("PUT", "/v1/admin/services/gateways"),
)


async def test_every_admin_route_is_documented(office: Office) -> None:
    paths = (await office.http.get("/openapi.json")).json()["paths"]
    page = (await office.http.get("/docs")).text
    listed = {
        path: sorted(it.upper() for it in operations)
        for path, operations in paths.items()
        if path.startswith("/v1/admin/") and not path.endswith("/scale")
    }
    for path, methods in office.gateway.application.routes.items():
        if path.startswith("/v1/admin/"):
            (known,) = [it for it in listed if it.partition("{")[0] == path]
            assert listed[known] == sorted(methods) and known in page
    assert paths["/v1/admin/deployments/{name}/scale"].keys() == {"put"}
    head = await office.http.head("/v1/admin/deployments")
    assert head.status_code == 200 and not head.content


async def test_only_an_admin_key_opens(office: Office) -> None:
    peer = Peer(office.cluster.common.kv_store_address, TOKEN)
    try:
        plain, _ = await AccessRecords(peer).create_key("shop")
    finally:
        await peer.close()
    await until(lambda: office.gateway.doors.ring.has_keys, what="the key")
    for method, path in ROUTES:
        for header, status, code in (
            ("", 401, "invalid_api_key"),
            ("Bearer df-wrong", 401, "invalid_api_key"),
            (f"Bearer {plain}", 403, "admin_key_needed"),
        ):
            reply = await office.http.request(method, path, headers={"authorization": header})
            assert error(reply)[:2] == (status, code), (method, path, header)
    assert not (await office.cluster.view()).deployments


async def test_members_and_sizes(office: Office) -> None:
    await office.cluster.until_ready("je-0", "gateway-9")
    members = (await office.http.get("/v1/admin/members")).json()
    assert members["term"] and {it["kind"] for it in members["data"]} >= {
        *("cluster_manager", "job_executor", "gateway"),
    }
    alone = (await office.http.get("/v1/admin/members?kind=gateway")).json()["data"]
    assert [(it["id"], it["address"]) for it in alone] == [("gateway-9", office.gateway.address)]
    scaled = await office.put("/v1/admin/services/job-executors", count=2)
    assert scaled.status_code in (200, 202) and scaled.json()["count"] == 2
    await office.cluster.until_ready("je-0", "je-1")

    async def is_settled() -> bool:
        reply = await office.put("/v1/admin/services/job-executors", count=2)
        return reply.status_code == 200 and reply.json()["ready"] == 2

    await until(is_settled, what="200 once there are two")
    rows = (await office.http.get("/v1/admin/services")).json()["data"]
    assert [(it["name"], it["count"]) for it in rows] == [("job-executors", 2), ("gateways", None)]


async def test_every_change_leaves_a_line(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "services.gateway.handlers.admin"):
        await office.deploy()
        await office.deploy()  # nothing changes
        await office.put(replicas=2)
        await office.put(f"{DEMO}/scale", replicas=1)
        await office.put("/v1/admin/services/gateways", count=1)
        await office.http.delete(DEMO)
        await office.http.delete(DEMO)  # there is nothing to undeploy
    lines = [it for it in caplog.records if it.name == "services.gateway.handlers.admin"]
    assert [it.__dict__["audit"].partition(" from ")[0] for it in lines] == [
        "deployed demo",
        "changed the deployment demo: {'replicas': 2}",
        "scaled demo to 1",
        "scaled gateways to 1",
        "undeployed demo",
    ]
    assert {it.__dict__["key"] for it in lines} == {"cluster"}


async def test_two_changes_at_one_time_both_count(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await office.deploy()
    view, stale = office.gateway._cluster.settled_view, [await office.cluster.view()]
    await office.put(replicas=3)

    async def first_late(*words: Any) -> Any:
        """The first look was before the other change."""
        return stale.pop() if stale else await view(*words)

    monkeypatch.setattr(office.gateway._cluster, "settled_view", first_late)
    row = (await office.put(dtype="bfloat16")).json()
    assert row["replicas"] == 3 and not stale
    (deployment,) = (await office.cluster.view()).deployments
    assert deployment.dtype == "bfloat16"


async def test_a_standby_answers_for_the_leader_that_went(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        port = free_port()
        addresses = f"127.0.0.1:{port},{cluster.common.cluster_manager_address}"
        config = cluster.manager._config.model_copy(update={"id": "cm-2", "port": port})
        standby = ClusterManagerServer(config)
        await standby.start()
        try:
            async with (
                gateway_of(cluster, cluster_manager_address=addresses) as gateway,
                httpx.AsyncClient(
                    base_url=f"http://{gateway.address}", headers=ADMIN, timeout=SECONDS
                ) as http,
            ):
                before = await http.get("/v1/admin/deployments")
                await cluster.manager.stop()
                after = await http.get("/v1/admin/deployments")
                assert (before.status_code, after.status_code) == (200, 200)
        finally:
            await standby.stop()


async def test_where_the_platform_starts_nobody_it_says_so(office: Office) -> None:
    await office.cluster.restart_manager(driver="none")
    await office.cluster.view()
    reply = await office.put("/v1/admin/services/gateways", count=2)
    assert error(reply)[::2] == (400, "kind") and "where they run" in reply.text
    rows = (await office.http.get("/v1/admin/services")).json()["data"]
    assert [it["count"] for it in rows] == [None, None]


async def test_while_nobody_leads_the_answer_is_a_clear_503(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepflow.cluster_client.CHANGE_SECONDS", 0.3)
    await office.cluster.manager.stop()
    reply = await office.put("/v1/admin/services/job-executors", count=2)
    assert error(reply) == (503, "no_cluster_manager", None)
    assert reply.headers["retry-after"] == "1"
    assert (await office.http.get("/health")).status_code == 200


async def test_who_was_let_in_before_the_port_closed_is_answered(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel alone: the gateway has not looked at these connections yet."""
    monkeypatch.setattr("services.gateway.http.protocol.FIRST_REQUEST_SECONDS", SECONDS)
    host, _, port = office.gateway.address.rpartition(":")
    early = [socket.create_connection((host, int(port))) for _ in range(5)]
    office.gateway._listener.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    for connection in early:
        reader, writer = await asyncio.open_connection(sock=connection)
        writer.write(b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), SECONDS)
        assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer.lower()
        writer.close()
    await asyncio.wait_for(office.gateway._listener.wait_until_left(), SECONDS)


async def test_a_gateway_that_is_to_go_refuses_and_may_stay_after_all(office: Office) -> None:
    own, membership = office.gateway.member.id, office.gateway._membership
    assert membership is not None
    await office.cluster.until_ready(own)
    view = await office.cluster.view()

    def show(state: types.LifecycleState.ValueType) -> None:
        """As from the cluster manager; what it says itself meanwhile is older."""
        view.version += 1000
        for member in view.members:
            if member.id == own:
                member.state = state
        newest = cluster_pb2.ClusterView()
        newest.CopyFrom(view)
        membership.adopt(newest)

    async def answers() -> bool:
        url = f"http://{office.gateway.address}"
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as fresh:
                return (await fresh.get("/health")).status_code == 200
        return False

    async def refuses() -> bool:
        return not await answers()

    ready, draining = types.LIFECYCLE_STATE_READY, types.LIFECYCLE_STATE_DRAINING
    await until(answers, what="it to answer")
    show(draining)
    await until(refuses, what="it to refuse")
    show(ready)
    await until(answers, what="it to answer again on the same port")
