"""Stays until there are as many as were asked for: new ones serve, and those that go are gone."""

import asyncio
from collections.abc import Callable

from deepflow import clock
from deepflow.cluster_client import ClusterClient
from deepflow.deployments import find
from deepflow.lifecycle import state_word
from deepflow.local.follow import POLL_SECONDS, DeployFailed, latest_view, until_ready
from deepflow.members import SIZE_FIELDS, members_of
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

# Longer than the longest drain and one start together, unless a load goes on.
SCALE_SECONDS_MAX = 180.0


async def follow_replicas(
    client: ClusterClient, deployment: cluster_pb2.Deployment, tell: Callable[[str], None]
) -> cluster_pb2.ClusterView:
    """The view with exactly as many. Raises DeployFailed where one cannot load, or where somebody
    else wants another number by now.
    """
    await until_ready(client, deployment, tell)

    def members(view: cluster_pb2.ClusterView) -> list[cluster_pb2.Member]:
        return [member for member in view.members if member.deployment == deployment.name]

    def wanted(view: cluster_pb2.ClusterView) -> int:
        current = find(view, deployment.name)
        return current.replicas if current is not None else 0

    return await _until_as_many(client, deployment.replicas, members, wanted, tell)


async def follow_kind(
    client: ClusterClient,
    kind: types.MemberKind.ValueType,
    count: int,
    tell: Callable[[str], None],
) -> cluster_pb2.ClusterView:
    def members(view: cluster_pb2.ClusterView) -> list[cluster_pb2.Member]:
        return members_of(view, kind)

    def wanted(view: cluster_pb2.ClusterView) -> int:
        return int(getattr(view.sizes, SIZE_FIELDS[kind]))

    return await _until_as_many(client, count, members, wanted, tell)


async def _until_as_many(
    client: ClusterClient,
    count: int,
    members: Callable[[cluster_pb2.ClusterView], list[cluster_pb2.Member]],
    wanted: Callable[[cluster_pb2.ClusterView], int],
    tell: Callable[[str], None],
) -> cluster_pb2.ClusterView:
    deadline = clock.monotonic() + SCALE_SECONDS_MAX
    while True:
        view = await latest_view(client)
        if (now := wanted(view)) != count:
            raise DeployFailed(f"somebody else asked for {now or 'none'} meanwhile")
        found = members(view)
        others = [it for it in found if it.state != types.LIFECYCLE_STATE_READY]
        if len(found) == count and not others:
            return view
        if clock.monotonic() > deadline:
            raise DeployFailed(f"there are {len(found)} after {SCALE_SECONDS_MAX:.0f} s")
        words = ", ".join(f"{it.id} {state_word(it.state)} {it.detail}".strip() for it in others)
        tell(words or f"{len(found)} of {count}")
        await asyncio.sleep(POLL_SECONDS)
