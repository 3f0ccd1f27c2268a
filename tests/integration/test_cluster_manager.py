"""The cluster manager with a real NATS, a real Redis behind the real kv_store, and fake pods."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from deepflow.errors import DeepFlowError, InvalidRequest, NotFound, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub
from services.cluster_manager.server import ClusterManagerServer
from services.cluster_manager.store import Store
from tests.integration.cluster_manager_rig import (
    READY,
    TOKEN,
    Cluster,
    running_cluster,
    write_model,
)
from tests.servers import until

if TYPE_CHECKING:
    pass


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
    for member in cluster.supervisor.members.values():
        member.running = 1
    busy = cluster.supervisor.members["te-1"]

    async def is_busy_known() -> bool:
        states = cluster.manager._manager._roster.states()  # type: ignore[union-attr]
        return all(states[id].in_flight == 1 for id in ("te-0", "te-1"))

    await until(is_busy_known, what="the load to be heard")
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
    await cluster.until_ready("guest")
    await guest.vanish()
    cluster.guests.clear()
    await cluster.until_gone("guest")
    assert await cluster.member("je-0") is not None


async def test_nobody_is_removed_while_nats_is_away(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.join("job_executor", "guest")
    await cluster.until_ready("je-0", "te-0", "guest")
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
    guest = await cluster.join("job_executor", "guest")
    await cluster.until_ready("guest")

    async def stored() -> bool:
        value = await cluster.manager._store.get("cluster/view")  # type: ignore[union-attr]
        view = cluster_pb2.ClusterView.FromString(value or b"")
        return any(m.id == "guest" and m.state == READY for m in view.members)

    await until(stored, what="the view to be stored")
    await guest.vanish()
    cluster.guests.clear()
    await cluster.restart_manager()
    assert await cluster.member("guest") is not None
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


async def test_one_of_two_managers_leads(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    config = cluster.manager._config.model_copy(update={"id": "second", "port": 0})
    second = ClusterManagerServer(config)
    await second.start()
    peer = Peer(f"127.0.0.1:{second.port}", TOKEN)
    stub = ClusterManagerServiceStub(peer.channel)
    request = cluster_pb2.GetViewRequest()

    async def knows_the_leader() -> bool:
        try:
            await peer.call(stub.GetView, request, timeout_seconds=5)
        except Unavailable as error:
            return "leader is cluster-manager" in error.message
        return False

    try:
        await until(knows_the_leader, what="the standby to know the leader")
        assert "standby" in second.lifecycle.detail
        term = (await cluster.view()).term
        await cluster.manager.stop()
        cluster.manager = second
        await until(lambda: second.lifecycle.is_ready, what="the standby to lead")
        view = (await peer.call(stub.GetView, request, timeout_seconds=5)).view
        assert view.term > term and [it.name for it in view.deployments] == ["demo"]
        assert {"je-0", "te-0"} <= {m.id for m in view.members}
    finally:
        await peer.close()
        if cluster.manager is not second:
            await second.stop()


async def test_a_manager_that_starts_first_waits_for_the_records(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.manager.stop()
    await cluster.kv_store.stop()
    cluster.manager = ClusterManagerServer(cluster.manager._config)
    await cluster.manager.start()
    assert not cluster.manager.lifecycle.is_ready
    await cluster.restart_kv_store()
    await cluster.until_ready("je-0", "te-0")


async def test_a_lease_that_ran_out_unclaimed_is_taken_again(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("je-0", "te-0")
    term = (await cluster.view()).term
    await cluster.kv_store.stop()
    stopped_at = time.monotonic()
    lease_seconds = cluster.manager._config.lease_seconds
    await until(lambda: time.monotonic() - stopped_at > lease_seconds, what="the lease to end")
    assert {"je-0", "te-0"} <= await cluster.ids()
    await cluster.restart_kv_store()

    async def is_renewed() -> bool:
        return (await cluster.view()).term == term + 1

    await until(is_renewed, what="the new term")
    assert {"je-0", "te-0"} <= await cluster.ids()
    assert len(cluster.supervisor.members["te-0"].task_executor.loads) == 1


async def test_a_manager_that_lost_its_lease_steps_down_and_writes_nothing(
    cluster: Cluster,
) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    term = (await cluster.view()).term
    store = Store(cluster.manager._config)
    lease = await store.acquire("cluster-manager", "usurper@1", 60)
    await store.release("cluster-manager", lease.holder, lease.token)
    usurped = await store.acquire("cluster-manager", "usurper@1", 60)
    assert usurped.is_mine and usurped.token > term
    with pytest.raises(Unavailable):
        await cluster.deploy("other")

    async def has_stepped_down() -> bool:
        try:
            await cluster.peer.call(
                cluster.stub.GetView, cluster_pb2.GetViewRequest(), timeout_seconds=5
            )
        except Unavailable as error:
            return "leader is usurper" in error.message
        return False

    await until(has_stepped_down, what="the old leader to step down")
    assert len(await store.list("deployments/")) == 1
    await store.release("cluster-manager", "usurper@1", usurped.token)
    await cluster.until_ready("je-0", "te-0")
    assert (await cluster.view()).term > usurped.token
    await store.close()


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
    for name in ("te-0", "te-1"):
        cluster.supervisor.members[name].running = 1
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
        await cluster.scale(kind=types.MEMBER_KIND_GATEWAY, count=2)


async def test_a_standby_is_a_member_of_the_leaders_view(cluster: Cluster) -> None:
    config = cluster.manager._config.model_copy(update={"id": "cm-2", "port": 0})
    second = ClusterManagerServer(config)
    await second.start()
    try:

        async def is_member() -> bool:
            member = await cluster.member("cm-2")
            return member is not None and "standby" in member.detail

        await until(is_member, what="the standby to be a member")
    finally:
        await second.stop()


async def test_task_executors_are_told_in_the_leaders_term(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    term = (await cluster.view()).term
    assert cluster.supervisor.members["te-0"].task_executor.terms == [term] and term > 0


async def test_an_outdated_replica_is_known_after_a_change_of_leaders(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("te-0")
    cluster.supervisor.members["te-0"].running = 1
    await cluster.deploy(dtype="float32")

    async def drains() -> bool:
        return "te-0" in await cluster.ids(types.LIFECYCLE_STATE_DRAINING)

    await until(drains, what="the outdated one to drain")
    await cluster.restart_manager()
    await until(drains, what="the new leader to drain it as well")
    member = await cluster.member("te-0")
    assert member is not None and member.is_outdated
    cluster.supervisor.members["te-0"].running = 0
    task_executor = cluster.supervisor.members["te-0"].task_executor
    await until(lambda: len(task_executor.loads) == 2, what="the change to be loaded")
    assert task_executor.loads[-1].dtype == "float32"
