"""From a request for a deployment to the model that serves, and back where it cannot."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deepflow.cluster_client import ClusterClient
from deepflow.deployments import describe_deployments, find, progress_of
from deepflow.errors import InvalidRequest
from deepflow.local.follow import DeployFailed, deploy_and_follow
from deepflow.local.scaling import follow_kind, follow_replicas
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.server import ClusterManagerServer
from tests.integration.cluster_manager_rig import (
    READY,
    TOKEN,
    Cluster,
    running_cluster,
    write_model,
)
from tests.servers import free_port, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[ClusterClient]:
    client = ClusterClient(cluster.common.cluster_manager_address, TOKEN)
    yield client
    await client.close()


def deployment(cluster: Cluster, **changes: object) -> cluster_pb2.Deployment:
    usual = {"name": "m", "source": str(cluster.folder / "model"), "device": "emulated:zero"}
    return cluster_pb2.Deployment(**usual | {"replicas": 1} | changes)  # type: ignore[arg-type]


def make_bad(cluster: Cluster) -> str:
    """A model that is read without complaint and never loads."""
    write_model(cluster.folder / "bad", vocab_size=310)
    source = str(cluster.folder / "bad")
    cluster.supervisor.bad_models.add(source)
    return source


async def test_what_the_author_says_of_drawing_is_read(cluster: Cluster) -> None:
    said = {"do_sample": True, "temperature": 0.5, "top_k": 20, "max_new_tokens": 64}
    (cluster.folder / "model/generation_config.json").write_text(json.dumps(said))
    facts = (await cluster.deploy()).facts
    assert facts.task == cluster_pb2.MODEL_TASK_GENERATE
    defaults = facts.defaults
    assert (defaults.temperature, defaults.top_k, defaults.max_tokens) == (0.5, 20, 64)
    assert not defaults.HasField("top_p") and not defaults.HasField("min_p")
    (cluster.folder / "model/generation_config.json").write_text('{"top_p": "much"}')
    with pytest.raises(InvalidRequest, match=r"generation_config.json: top_p must be") as refusal:
        await cluster.deploy()
    assert refusal.value.param == "source"


async def test_how_it_is_held_reaches_the_task_executor(cluster: Cluster) -> None:
    asked: dict[str, Any] = {"dtype": "bfloat16", "max_tokens": 128, "kv_bytes": 1 << 20}
    await cluster.deploy(**asked)
    await cluster.until_ready("te-0")
    held = cluster.supervisor.members["te-0"].task_executor.loads[-1]
    assert (held.dtype, held.max_tokens, held.kv_bytes) == ("bfloat16", 128, 1 << 20)


async def test_another_way_of_holding_it_is_another_load(
    cluster: Cluster, client: ClusterClient
) -> None:
    await deploy_and_follow(client, deployment(cluster), lambda _: None)
    await deploy_and_follow(client, deployment(cluster, dtype="float32"), lambda _: None)
    loads = cluster.supervisor.members["te-0"].task_executor.loads
    assert [it.dtype for it in loads] == ["", "float32"]


async def test_following_ends_when_every_replica_is_ready(
    cluster: Cluster, client: ClusterClient
) -> None:
    view = await deploy_and_follow(client, deployment(cluster, replicas=2), lambda _: None)
    assert [row["ready"] for row in describe_deployments(view)] == [2]
    assert {m.id for m in view.members if m.deployment == "m" and m.state == READY} == {
        "te-0",
        "te-1",
    }


async def test_a_new_model_that_does_not_load_is_withdrawn_with_its_reason(
    cluster: Cluster, client: ClusterClient
) -> None:
    bad = make_bad(cluster)
    with pytest.raises(DeployFailed, match="the weights are bent; m was withdrawn"):
        await deploy_and_follow(client, deployment(cluster, source=bad), lambda _: None)
    assert not (await client.view()).deployments
    await cluster.until_pods("je-0")


async def test_a_change_that_does_not_load_is_put_back(
    cluster: Cluster, client: ClusterClient
) -> None:
    await deploy_and_follow(client, deployment(cluster), lambda _: None)
    bad = make_bad(cluster)
    with pytest.raises(DeployFailed, match="the weights are bent; m was put back to what it was"):
        await deploy_and_follow(client, deployment(cluster, source=bad), lambda _: None)

    async def serves_again() -> bool:
        view = await client.view()
        put_back = find(view, "m")
        assert put_back is not None and put_back.source != bad
        return progress_of(put_back, view.members).state == "ready"

    await until(serves_again, what="the former model to serve again")


async def test_a_refusal_changes_nothing(cluster: Cluster, client: ClusterClient) -> None:
    (cluster.folder / "model/config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(InvalidRequest, match=r"GPT2LMHeadModel.*supported: LlamaForCausalLM"):
        await deploy_and_follow(client, deployment(cluster), lambda _: None)
    assert not (await client.view()).deployments


async def test_a_bad_model_is_shown_as_failed_and_disturbs_nobody(cluster: Cluster) -> None:
    await cluster.deploy("good")
    await cluster.until_ready("te-0")
    await cluster.deploy("bad", source=make_bad(cluster))
    rows: dict[str, dict[str, object]] = {}

    async def has_failed_again() -> bool:
        view = await cluster.view()
        rows.update({str(row["name"]): row for row in describe_deployments(view)})
        return "(2 times so far): the weights are bent" in str(rows["bad"]["detail"])

    await until(has_failed_again, what="the second failure to be told")
    assert (rows["bad"]["state"], rows["bad"]["ready"]) == ("failed", 0)
    assert (rows["good"]["state"], rows["good"]["detail"]) == ("ready", "")
    good = cluster.supervisor.members["te-0"].task_executor
    assert [it.name for it in good.loads] == ["good"]
    assert cluster.supervisor.started == ["je-0", "te-0", "te-1"]
    await cluster.undeploy("bad")
    await cluster.until_pods("je-0", "te-0")


async def test_asking_again_tries_a_failed_load_at_once(
    cluster: Cluster, client: ClusterClient
) -> None:
    await cluster.restart_manager(load_retry_first_seconds=3600.0, load_retry_max_seconds=3600.0)
    await cluster.view()  # somebody leads again
    bad = make_bad(cluster)
    await cluster.deploy("m", source=bad)

    async def has_failed() -> bool:
        return [row["state"] for row in describe_deployments(await cluster.view())] == ["failed"]

    await until(has_failed, what="the load to fail")
    cluster.supervisor.bad_models.clear()
    async with asyncio.timeout(30):
        await deploy_and_follow(client, deployment(cluster, source=bad), lambda _: None)


async def test_a_client_finds_the_leader_among_several(cluster: Cluster) -> None:
    config = cluster.manager._config.model_copy(update={"id": "cm-2", "port": 0})
    standby = ClusterManagerServer(config)
    await standby.start()
    nobody = f"127.0.0.1:{free_port()}"
    addresses = (nobody, f"127.0.0.1:{standby.port}", cluster.common.cluster_manager_address)
    client = ClusterClient(",".join(addresses), TOKEN)
    try:
        assert (await client.view()).term == (await cluster.view()).term
        await deploy_and_follow(client, deployment(cluster), lambda _: None)
        await follow_replicas(client, await client.scale("m", 2), lambda _: None)
        assert len((await client.view()).deployments) == 1
    finally:
        await client.close()
        await standby.stop()


async def test_who_waits_for_a_number_hears_that_somebody_else_wants_another(
    cluster: Cluster, client: ClusterClient
) -> None:
    """At once, not after the longest that a drain may take."""
    await deploy_and_follow(client, deployment(cluster), lambda _: None)
    asked = await client.scale("m", 3)
    await client.scale("m", 2)
    with pytest.raises(DeployFailed, match="somebody else changed m meanwhile"):
        await follow_replicas(client, asked, lambda _: None)
    kind = types.MEMBER_KIND_JOB_EXECUTOR
    await client.scale_kind(kind, 2)
    await client.scale_kind(kind, 1)
    with pytest.raises(DeployFailed, match="somebody else asked for 1 meanwhile"):
        await follow_kind(client, kind, 2, lambda _: None)
