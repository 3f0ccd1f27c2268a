"""How many of a kind there are, kept by a real cluster manager; and changes that meet another."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.errors import Conflict, InvalidRequest
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.cluster_manager_rig import SECONDS, Cluster, running_cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as running:
        yield running


async def test_each_kind_is_scaled_alone(cluster: Cluster) -> None:
    await cluster.supervisor._spawn("gateway-0", "gateway")  # one of somebody else's, at first
    await cluster.scale(kind=types.MEMBER_KIND_JOB_EXECUTOR, count=2)
    await cluster.scale(kind=types.MEMBER_KIND_GATEWAY, count=3)
    await cluster.until_pods("je-0", "je-1", "gateway-0", "gateway-1", "gateway-2")
    sizes = (await cluster.view()).sizes
    assert (sizes.job_executors, sizes.gateways) == (2, 3)
    await cluster.restart_manager()
    await cluster.until_ready("gateway-0", "gateway-1", "gateway-2")
    await cluster.busy("gateway-2")
    await cluster.scale(kind=types.MEMBER_KIND_GATEWAY, count=1)
    await cluster.until_pods("je-0", "je-1", "gateway-0", "gateway-2")
    cluster.supervisor.members["gateway-2"].running = 0
    await cluster.until_pods("je-0", "je-1", "gateway-0")


async def test_a_change_made_on_what_somebody_else_changed_is_a_conflict(cluster: Cluster) -> None:
    first = await cluster.deploy()
    request = cluster_pb2.DeployRequest(deployment=first, expected_revision=first.revision)
    request.deployment.replicas = 2
    await cluster.peer.call(cluster.stub.Deploy, request, timeout_seconds=SECONDS)
    request.deployment.replicas = 3
    with pytest.raises(Conflict, match="somebody else changed demo"):
        await cluster.peer.call(cluster.stub.Deploy, request, timeout_seconds=SECONDS)
    request.expected_revision = 0
    with pytest.raises(Conflict):
        await cluster.peer.call(cluster.stub.Deploy, request, timeout_seconds=SECONDS)


async def test_nobody_is_scaled_where_nobody_is_started(cluster: Cluster) -> None:
    await cluster.restart_manager(driver="none")
    assert not (await cluster.view()).HasField("sizes")
    with pytest.raises(InvalidRequest, match="start or stop gateways where they run"):
        await cluster.scale(kind=types.MEMBER_KIND_GATEWAY, count=2)
