"""Whose failure ends a start, and whose does not."""

from pathlib import Path
from typing import cast

import pytest

from deepflow import clock
from deepflow.local.cluster import ClusterLink
from deepflow.local.conditions import Conditions, MemberFailed
from deepflow.local.progress import ModelChoice, Reporter
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types

MODEL = ModelChoice("demo", Path("/models/demo"), "cpu", 1)
BLANK, FAILED = types.LIFECYCLE_STATE_BLANK, types.LIFECYCLE_STATE_FAILED
READY = types.LIFECYCLE_STATE_READY


class Cluster:
    def __init__(self, *members: cluster_pb2.Member) -> None:
        self._members = members

    async def view(self) -> cluster_pb2.ClusterView:
        return cluster_pb2.ClusterView(members=self._members)


class Silent:
    def detail(self, text: str) -> None:
        """Nobody looks."""


def member(
    state: types.LifecycleState.ValueType, deployment: str, detail: str = ""
) -> cluster_pb2.Member:
    return cluster_pb2.Member(
        id="te-1",
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        state=state,
        deployment=deployment,
        detail=detail,
        started_unix_ms=clock.unix_ms() + 1000,
    )


async def has_loaded(*members: cluster_pb2.Member) -> bool:
    cluster, reporter = cast(ClusterLink, Cluster(*members)), cast(Reporter, Silent())
    return await Conditions(cluster, reporter, "key", None).has_loaded(MODEL)


async def test_a_load_of_ours_that_fails_ends_the_start() -> None:
    with pytest.raises(MemberFailed, match="te-1 failed: load failed: no card"):
        await has_loaded(member(BLANK, "demo", "load failed: no card"))


async def test_a_process_that_fails_before_it_has_a_model_ends_the_start() -> None:
    with pytest.raises(MemberFailed):
        await has_loaded(member(FAILED, "", "no engine"))


@pytest.mark.parametrize("deployment", ["other", ""], ids=["under way", "withdrawn"])
async def test_what_others_deploy_meanwhile_may_fail(deployment: str) -> None:
    assert not await has_loaded(member(BLANK, deployment, "load failed: no card"))
    ready = member(READY, "demo")
    assert await has_loaded(member(BLANK, deployment, "load failed: no card"), ready)
