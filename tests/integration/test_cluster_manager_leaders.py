"""Who leads of several cluster managers: leases, terms, standbys, and what outlives a leader."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.errors import Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub
from services.cluster_manager.server import ClusterManagerServer
from services.cluster_manager.store import Lease, Store
from tests.integration.cluster_manager_rig import (
    SECONDS,
    TOKEN,
    Cluster,
    running_cluster,
)
from tests.servers import until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


async def test_one_of_two_managers_leads(cluster: Cluster) -> None:
    await cluster.deploy()
    await cluster.until_ready("je-0", "te-0")
    config = cluster.manager._config.model_copy(update={"id": "second", "port": 0})
    second = ClusterManagerServer(config)
    await second.start()
    peer = Peer(f"127.0.0.1:{second.port}", TOKEN)
    stub = ClusterManagerServiceStub(peer.channel)
    request = cluster_pb2.GetViewRequest()

    async def knows_the_leader() -> bool:
        try:
            await peer.call(stub.GetView, request, timeout_seconds=SECONDS)
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
        view = (await peer.call(stub.GetView, request, timeout_seconds=SECONDS)).view
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
    await cluster.restart_manager(lease_seconds=1.0)
    await cluster.until_ready("je-0", "te-0")
    term = (await cluster.view()).term
    await cluster.kv_store.stop()
    stopped_at = time.monotonic()
    lease_seconds = cluster.manager._config.lease_seconds
    await until(lambda: time.monotonic() - stopped_at > lease_seconds, what="the lease to end")
    assert {"je-0", "te-0"} <= await cluster.ids()
    await cluster.restart_kv_store()

    async def is_renewed() -> bool:
        return (await cluster.view()).term > term

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

    async def usurp() -> Lease:
        return await store.acquire("cluster-manager", "usurper@1", 60)

    while not (usurped := await usurp()).is_mine:  # the leader may be quicker to take it again
        await store.release("cluster-manager", usurped.holder, usurped.token)
    assert usurped.token > term
    with pytest.raises(Unavailable):
        await cluster.deploy("other")

    async def has_stepped_down() -> bool:
        try:
            await cluster.peer.call(
                cluster.stub.GetView, cluster_pb2.GetViewRequest(), timeout_seconds=SECONDS
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
    await cluster.busy("te-0")
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
