"""Stays until there are as many as were asked for: new ones serve, and those that go are gone."""

import asyncio
from collections.abc import Callable

from deepflow import clock
from deepflow.lifecycle import state_word
from deepflow.local.cluster_client import ClusterClient
from deepflow.local.follow import POLL_SECONDS, DeployFailed, latest_view, until_ready
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

# Longer than the longest drain and one start together, unless a load goes on.
SCALE_SECONDS_MAX = 180.0


async def follow_replicas(
    client: ClusterClient, deployment: cluster_pb2.Deployment, tell: Callable[[str], None]
) -> cluster_pb2.ClusterView:
    """The view with exactly as many. Raises DeployFailed where one cannot load."""
    await until_ready(client, deployment, tell)

    def members(view: cluster_pb2.ClusterView) -> list[cluster_pb2.Member]:
        return [member for member in view.members if member.deployment == deployment.name]

    return await _until_as_many(client, deployment.replicas, members, tell)


async def follow_job_executors(
    client: ClusterClient, count: int, tell: Callable[[str], None]
) -> cluster_pb2.ClusterView:
    def members(view: cluster_pb2.ClusterView) -> list[cluster_pb2.Member]:
        kind = types.MEMBER_KIND_JOB_EXECUTOR
        return [member for member in view.members if member.kind == kind]

    return await _until_as_many(client, count, members, tell)


async def _until_as_many(
    client: ClusterClient,
    count: int,
    members: Callable[[cluster_pb2.ClusterView], list[cluster_pb2.Member]],
    tell: Callable[[str], None],
) -> cluster_pb2.ClusterView:
    deadline = clock.monotonic() + SCALE_SECONDS_MAX
    while True:
        view = await latest_view(client)
        found = members(view)
        others = [it for it in found if it.state != types.LIFECYCLE_STATE_READY]
        if len(found) == count and not others:
            return view
        if clock.monotonic() > deadline:
            raise DeployFailed(f"there are {len(found)} after {SCALE_SECONDS_MAX:.0f} s")
        words = ", ".join(f"{it.id} {state_word(it.state)} {it.detail}".strip() for it in others)
        tell(words or f"{len(found)} of {count}")
        await asyncio.sleep(POLL_SECONDS)
