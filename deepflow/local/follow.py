"""Puts a deployment in its place and stays until it serves; takes back what cannot."""

import asyncio
from collections.abc import Callable

from deepflow import clock
from deepflow.cluster_client import ClusterClient
from deepflow.deployments import FAILED, READY, WAITING, find, progress_of
from deepflow.errors import DeepFlowError, NotFound, Unavailable
from deepflow.v1 import cluster_pb2

POLL_SECONDS = 0.1
# For a task executor to be there and take the model; loading then takes what it takes.
WAITING_SECONDS_MAX = 120.0
# A cluster manager that is replaced is back by then.
AWAY_SECONDS_MAX = 60.0


class DeployFailed(Exception):
    """The task executor's own words, and what became of the deployment."""


async def deploy_and_follow(
    client: ClusterClient, asked: cluster_pb2.Deployment, tell: Callable[[str], None]
) -> cluster_pb2.ClusterView:
    """The view in which it is ready. Raises DeployFailed, and DeepFlowError for a refusal.

    A deployment that fails is withdrawn, or put back to what it was: nothing goes on failing
    behind a person's back.
    """
    former = find(await latest_view(client), asked.name)
    deployed = await client.deploy(asked)
    try:
        return await until_ready(client, deployed, tell)
    except DeployFailed as error:
        aftermath = await _take_back(client, former, deployed)
        raise DeployFailed(f"{error}; {aftermath}") from error


async def until_ready(
    client: ClusterClient, deployed: cluster_pb2.Deployment, tell: Callable[[str], None]
) -> cluster_pb2.ClusterView:
    waiting_since = clock.monotonic()
    while True:
        view = await latest_view(client)
        current = find(view, deployed.name)
        if current is None or current.revision > deployed.revision:
            raise DeployFailed(f"somebody else changed {deployed.name} meanwhile")
        progress = progress_of(current, view.members)
        if progress.state == READY:
            return view
        if progress.state == FAILED:
            raise DeployFailed(f"{progress.failed_member}: {progress.detail}")
        if progress.state != WAITING:
            waiting_since = clock.monotonic()
        elif clock.monotonic() - waiting_since > WAITING_SECONDS_MAX:
            raise DeployFailed(
                f"no task executor took {deployed.name} within {WAITING_SECONDS_MAX:.0f} s; see"
                " 'deepflow status' and 'deepflow logs'"
            )
        tell(progress.detail or "waits for a task executor")
        await asyncio.sleep(POLL_SECONDS)


async def latest_view(
    client: ClusterClient, away_seconds_max: float = AWAY_SECONDS_MAX
) -> cluster_pb2.ClusterView:
    """Also while one cluster manager takes over from another."""
    deadline = clock.monotonic() + away_seconds_max
    while True:
        try:
            return await client.view()
        except Unavailable:
            if clock.monotonic() > deadline:
                raise
        await asyncio.sleep(POLL_SECONDS)


async def _take_back(
    client: ClusterClient,
    former: cluster_pb2.Deployment | None,
    deployed: cluster_pb2.Deployment,
) -> str:
    """What became of it, in words. Never undoes what somebody else did meanwhile."""
    name = deployed.name
    try:
        current = find(await latest_view(client), name)
        if current is None or current.revision != deployed.revision:
            return "it was left as it is now"
        if former is None:
            await client.undeploy(name)
            return f"{name} was withdrawn"
        if former.revision == deployed.revision:
            return f"{name} was deployed like this before and is tried again now and then"
        await client.deploy(former)
        return f"{name} was put back to what it was"
    except NotFound:
        return f"{name} was withdrawn"
    except DeepFlowError as error:
        return f"it could not be withdrawn ({error.message}): try 'deepflow undeploy {name}'"
