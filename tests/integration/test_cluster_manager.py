"""The cluster manager with a real NATS, a real Redis behind the real kv_store, and fake pods."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deepflow.errors import DeepFlowError, InvalidRequest, NotFound, Unavailable
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.server import ClusterManagerServer
from tests.integration.cluster_manager_rig import (
    READY,
    Cluster,
    running_cluster,
    write_model,
)
from tests.servers import until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


async def test_a_deployment_gets_its_pod_its_model_and_its_place_in_the_view(
    cluster: Cluster,
) -> None:
    await cluster.until_ready("je-0", "kv-store", "cluster-manager")
    deployment = await cluster.deploy()
    assert deployment.revision == 1 and deployment.created_unix_ms > 0
    assert deployment.facts.vocab_size == 300 and deployment.facts.has_chat_template
    await cluster.until_ready("je-0", "te-0")
    te = await cluster.member("te-0")
    assert te is not None and te.deployment == "demo"
    held = cluster.supervisor.members["te-0"].task_executor.loads
    assert [it.facts.model_revision for it in held] == [deployment.facts.model_revision]
    # The same view reaches every member by push.
    je = cluster.supervisor.members["je-0"]
    await until(
        lambda: any(m.id == "te-0" and m.state == READY for m in je.view.members),
        what="the view to be pushed",
    )
    assert [it.name for it in je.view.deployments] == ["demo"]


async def test_deploying_again_changes_only_what_differs(cluster: Cluster) -> None:
    first = await cluster.deploy()
    assert await cluster.deploy() == first
    second = await cluster.deploy(replicas=2)
    assert (second.revision, second.created_unix_ms) == (2, first.created_unix_ms)
    await cluster.until_ready("te-0", "te-1")
    await cluster.deploy(replicas=1)
    await cluster.until_pods("je-0", "te-0")
    te = cluster.supervisor.members["te-0"].task_executor
    write_model(cluster.folder / "model", vocab_size=400)
    third = await cluster.deploy(replicas=1)
    assert third.facts.model_revision != first.facts.model_revision
    await until(
        lambda: te.loads[-1].facts.model_revision == third.facts.model_revision,
        what="the changed model to be loaded",
    )
    await cluster.until_ready("te-0")


async def test_undeploying_blanks_and_stops_its_pods(cluster: Cluster) -> None:
    await cluster.deploy("one")
    await cluster.deploy("two")
    await cluster.until_ready("te-0", "te-1")
    keeper = {m.deployment: m.id for m in (await cluster.view()).members}["two"]
    await cluster.undeploy("one")
    await cluster.until_pods("je-0", keeper)
    assert [it.name for it in (await cluster.view()).deployments] == ["two"]
    with pytest.raises(NotFound):
        await cluster.undeploy("one")


async def test_a_pod_with_work_in_flight_is_not_scaled_away(cluster: Cluster) -> None:
    await cluster.deploy(replicas=2)
    await cluster.until_ready("te-0", "te-1")
    await cluster.busy("te-0", "te-1")
    busy = cluster.supervisor.members["te-1"]
    await cluster.deploy(replicas=1)
    await until_heard_again(cluster, times=5)
    assert set(cluster.supervisor.rows) == {"je-0", "te-0", "te-1"}
    busy.running = 0
    await cluster.until_pods("je-0", "te-0")


async def until_heard_again(cluster: Cluster, times: int) -> None:
    """Some heartbeats, and with them some rounds of the rules, go by."""
    roster = cluster.manager._manager._roster  # type: ignore[union-attr]
    for _ in range(times):
        before = roster.states()["te-0"].heard_at
        await until(
            lambda before=before: roster.states()["te-0"].heard_at > before,  # type: ignore[misc]
            what="a heartbeat",
        )


async def test_bad_deployments_name_their_field(cluster: Cluster) -> None:
    await cluster.until_ready("je-0")
    nowhere = str(cluster.folder / "nowhere")

    async def refused(param: str, **wrong: object) -> DeepFlowError:
        with pytest.raises(InvalidRequest) as refusal:
            await cluster.deploy(**wrong)  # type: ignore[arg-type]
        assert refusal.value.param == param
        return refusal.value

    assert "emulated:h200" in (await refused("device", device="tpu")).message
    assert "64" in (await refused("replicas", replicas=65)).message
    await refused("replicas", replicas=0)
    await refused("name", name="a b")
    await refused("name", name="../up")
    await refused("name", name="x" * 200)
    assert "no such model folder" in (await refused("source", source=nowhere)).message
    await refused("source", source="relative/path")
    assert "bfloat16" in (await refused("dtype", device="cpu", dtype="float16")).message
    assert "hermes" in (await refused("tool_format", tool_format="morse")).message
    assert "from 2 to 512" in (await refused("max_tokens", max_tokens=513)).message
    await refused("max_tokens", max_tokens=1)
    assert not (await cluster.view()).deployments


async def test_a_failed_load_is_told_and_retried(cluster: Cluster) -> None:
    cluster.supervisor.loads_to_fail = 3
    await cluster.deploy()

    async def told() -> bool:
        te = await cluster.member("te-0")
        return te is not None and "the weights are bent" in te.detail

    await until(told, what="the reason to be in the view")
    await cluster.until_ready("te-0")
    te = await cluster.member("te-0")
    assert te is not None and te.detail == ""
    assert cluster.supervisor.started.count("te-0") == 1


async def test_a_killed_pod_is_given_up_at_once_and_filled_again(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    before = await cluster.member("te-0")
    await cluster.supervisor.kill("te-0")
    await cluster.until_gone("te-0")
    await cluster.supervisor.revive("te-0")
    await cluster.until_ready("te-0")
    after = await cluster.member("te-0")
    assert before is not None and after is not None and after.incarnation > before.incarnation
    assert cluster.supervisor.started == ["je-0", "te-0"]


async def test_silence_ends_a_member_while_others_are_heard(cluster: Cluster) -> None:
    guest = await cluster.join("job_executor", "guest")
    await cluster.until_ready("guest", "je-0")
    await guest.vanish()
    cluster.guests.clear()
    await cluster.until_gone("guest")
    assert await cluster.member("je-0") is not None


async def test_nobody_is_removed_while_nats_is_away(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.join("job_executor", "guest")
    await cluster.until_ready("je-0", "te-0", "guest", "kv-store")
    roster = cluster.manager._manager._roster  # type: ignore[union-attr]
    await cluster.nats.kill()
    heard = {id: state.heard_at for id, state in roster.states().items()}

    silent_since = max(heard.values())
    await until(
        lambda: time.monotonic() - silent_since > 2.5, what="more than the member timeout to pass"
    )
    ids = await cluster.ids()
    assert {"je-0", "te-0", "guest", "kv-store"} <= ids
    # Deploying works without NATS; so does filling the new task executor.
    await cluster.deploy("other")
    await cluster.until_ready("te-1")
    await cluster.nats.start()
    await until_heard_again(cluster, times=15)
    assert ids | {"te-1"} <= await cluster.ids()


async def test_a_restart_of_the_manager_moves_nothing(cluster: Cluster) -> None:
    await cluster.deploy(replicas=2)
    await cluster.until_ready("je-0", "te-0", "te-1")
    before = await cluster.view()
    await cluster.restart_manager()
    await cluster.until_ready("je-0", "te-0", "te-1", "kv-store")
    after = await cluster.view()
    assert after.term > before.term
    assert [it.name for it in after.deployments] == ["demo"]
    await until_heard_again(cluster, times=15)
    assert cluster.supervisor.started.count("te-0") == 1
    for name in ("te-0", "te-1"):
        assert len(cluster.supervisor.members[name].task_executor.loads) == 1
    await cluster.until_pods("je-0", "te-0", "te-1")


async def test_a_remembered_member_that_stays_silent_goes(cluster: Cluster) -> None:
    await cluster.restart_manager(member_timeout_seconds=600.0)
    guest = await cluster.join("job_executor", "guest")
    await cluster.until_ready("guest")

    async def stored() -> bool:
        value = await cluster.manager._store.get("cluster/view")  # type: ignore[union-attr]
        view = cluster_pb2.ClusterView.FromString(value or b"")
        return any(m.id == "guest" and m.state == READY for m in view.members)

    await until(stored, what="the view to be stored")
    await guest.vanish()
    cluster.guests.clear()
    await cluster.restart_manager(member_timeout_seconds=600.0)
    assert await cluster.member("guest") is not None
    await cluster.restart_manager(member_timeout_seconds=1.0)
    await cluster.until_gone("guest")
    await cluster.until_ready("je-0")


async def test_without_the_records_the_leader_goes_on(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    term = (await cluster.view()).term
    await cluster.kv_store.stop()
    with pytest.raises(Unavailable):
        await cluster.deploy("other")
    await cluster.supervisor.kill("te-0")
    await cluster.supervisor.revive("te-0")
    await cluster.until_ready("te-0")
    assert (await cluster.view()).term == term
    await cluster.restart_kv_store()

    async def deployed() -> bool:
        with contextlib.suppress(Unavailable):
            return bool(await cluster.deploy("other"))
        return False

    await until(deployed, what="the records to be back")
    await cluster.until_ready("te-1")


async def test_lost_records_undeploy_nothing(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("je-0", "te-0")
    je = cluster.supervisor.members["je-0"]
    await until(lambda: len(je.view.deployments) == 1, what="the view to be pushed")
    client = Redis(host="127.0.0.1", port=cluster.redis.port)
    await client.flushall()
    await client.aclose()
    await until(lambda: not cluster.kv_store.lifecycle.is_ready, what="the loss to be seen")
    with pytest.raises(Unavailable):
        await cluster.deploy("other")
    assert [it.name for it in (await cluster.view()).deployments] == ["demo"]
    assert {"je-0", "te-0"} <= await cluster.ids()
    # Not even a new manager takes "lost" for "nothing": it does not lead, and members go on.
    await cluster.manager.stop()
    cluster.manager = ClusterManagerServer(cluster.manager._config)
    await cluster.manager.start()
    await until(lambda: "generation marker" in cluster.manager.lifecycle.detail, what="the reason")
    assert not cluster.manager.lifecycle.is_ready
    assert [it.name for it in je.view.deployments] == ["demo"]
    assert set(cluster.supervisor.rows) == {"je-0", "te-0"}


async def test_scaling_down_drains_before_it_stops(cluster: Cluster) -> None:
    await cluster.deploy(replicas=2)
    await cluster.until_ready("te-0", "te-1")
    await cluster.busy("te-0", "te-1")
    reply = await cluster.scale(deployment="demo", count=1)
    assert reply.deployment.replicas == 1

    async def drains() -> bool:
        return len(await cluster.ids(types.LIFECYCLE_STATE_DRAINING)) == 1

    await until(drains, what="one of the two to be shown as draining")
    (going,) = await cluster.ids(types.LIFECYCLE_STATE_DRAINING)
    member = await cluster.member(going)
    assert member is not None and member.detail == "scaled down"
    assert going in cluster.supervisor.rows
    cluster.supervisor.members[going].running = 0
    await cluster.until_gone(going)
    await until(lambda: len(cluster.supervisor.rows) == 2, what="the other one and je-0 alone")


async def test_job_executors_are_scaled_and_stay_so_over_a_restart(cluster: Cluster) -> None:
    kind = types.MEMBER_KIND_JOB_EXECUTOR
    await cluster.scale(kind=kind, count=3)
    await cluster.until_ready("je-0", "je-1", "je-2")
    await cluster.restart_manager()
    await cluster.until_ready("je-0", "je-1", "je-2")
    await cluster.scale(kind=kind, count=1)
    await cluster.until_pods("je-0")


async def test_what_cannot_be_scaled_is_refused(cluster: Cluster) -> None:
    with pytest.raises(NotFound, match="no deployment 'nobody'"):
        await cluster.scale(deployment="nobody", count=1)
    with pytest.raises(InvalidRequest, match="count is 0; it must be from 1 to 64"):
        await cluster.scale(deployment="demo", count=0)
    with pytest.raises(InvalidRequest, match="target must be"):
        await cluster.scale(kind=types.MEMBER_KIND_TASK_EXECUTOR, count=2)
