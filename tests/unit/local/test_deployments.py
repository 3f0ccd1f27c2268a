"""What became of a deployment, as the view tells it."""

import pytest

from deepflow.deployments import (
    FAILED,
    LOADING,
    READY,
    WAITING,
    cut_words,
    describe_deployments,
    progress_of,
)
from deepflow.v1 import cluster_pb2
from deepflow.v1 import types_pb2 as types


def deployment(replicas: int = 1) -> cluster_pb2.Deployment:
    facts = cluster_pb2.ModelFacts(
        architecture="LlamaForCausalLM", parameters=1000, context_length=4096
    )
    return cluster_pb2.Deployment(
        name="m", source="/m", device="cpu", replicas=replicas, facts=facts, kv_bytes=77
    )


def task_executor(
    id: str = "te-0",
    state: types.LifecycleState.ValueType = types.LIFECYCLE_STATE_READY,
    detail: str = "",
    **more: object,
) -> cluster_pb2.Member:
    member = cluster_pb2.Member(
        id=id,
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        state=state,
        deployment="m",
        detail=detail,
        capabilities=cluster_pb2.Capabilities(
            dtype="bfloat16", max_tokens=2048, weight_bytes=2000, kv_bytes=500
        ),
    )
    for name, value in more.items():
        setattr(member, name, value)
    return member


BLANK = types.LIFECYCLE_STATE_BLANK
LOADING_STATE = types.LIFECYCLE_STATE_LOADING


@pytest.mark.parametrize(
    ("replicas", "members", "state", "ready", "detail"),
    [
        (1, [], WAITING, 0, ""),
        (1, [task_executor()], READY, 1, ""),
        (2, [task_executor(), task_executor("te-1")], READY, 2, ""),
        (
            2,
            [task_executor(), task_executor("te-1", LOADING_STATE, "read_weights")],
            LOADING,
            1,
            "te-1 loading read_weights",
        ),
        (1, [task_executor(state=BLANK, detail="cannot load m: bent")], FAILED, 0, "cannot load m"),
        # One replica that fails is a failure, whatever the others do.
        (2, [task_executor(), task_executor("te-1", BLANK, "bent")], FAILED, 1, "bent"),
        # What it holds is not what is asked for now: neither ready nor failed.
        (1, [task_executor(is_outdated=True)], LOADING, 0, "te-0 to be replaced"),
        (1, [task_executor(state=BLANK, detail="old", is_outdated=True)], LOADING, 0, "old"),
        # Others' members and members of other kinds say nothing about it.
        (1, [task_executor(deployment="other")], WAITING, 0, ""),
        (1, [task_executor(kind=types.MEMBER_KIND_JOB_EXECUTOR)], WAITING, 0, ""),
    ],
)
def test_how_far_it_is(
    replicas: int, members: list[cluster_pb2.Member], state: str, ready: int, detail: str
) -> None:
    progress = progress_of(deployment(replicas), members)
    assert (progress.state, progress.ready) == (state, ready)
    assert detail in progress.detail if detail else not progress.detail
    assert bool(progress.failed_member) == (state == FAILED)


def test_memory_is_what_is_held_and_until_then_what_was_asked_for() -> None:
    view = cluster_pb2.ClusterView(deployments=[deployment()])
    row = describe_deployments(view)[0]
    assert (row["dtype"], row["max_tokens"], row["weight_bytes"], row["kv_bytes"]) == ("", 0, 0, 77)
    view.members.append(task_executor())
    row = describe_deployments(view)[0]
    assert (row["dtype"], row["max_tokens"]) == ("bfloat16", 2048)
    assert (row["weight_bytes"], row["kv_bytes"]) == (2000, 500)
    assert (row["state"], row["ready"], row["context_length"]) == ("ready", 1, 4096)


def test_a_context_that_was_cut_is_told_unless_it_was_asked_for() -> None:
    view = cluster_pb2.ClusterView(deployments=[deployment()])
    assert not cut_words(describe_deployments(view)[0])  # nothing is held yet
    view.members.append(task_executor())
    words = cut_words(describe_deployments(view)[0])
    assert words.startswith("its context is 2048 of 4096 tokens") and "--kv-memory" in words
    view.deployments[0].max_tokens = 2048
    assert not cut_words(describe_deployments(view)[0])


def test_tiers_are_those_that_every_replica_has_or_what_was_asked_for() -> None:
    asked, replicas = deployment(2), [task_executor(), task_executor("te-1")]
    asked.engine.kv_dram_bytes, asked.engine.kv_disk_bytes = 100, 200
    for member, dram, disk in zip(replicas, (96, 90), (192, 195), strict=True):
        member.capabilities.kv_dram_bytes, member.capabilities.kv_disk_bytes = dram, disk

    def sizes(members: list[cluster_pb2.Member]) -> tuple[int, int]:
        (row,) = describe_deployments(cluster_pb2.ClusterView(members=members, deployments=[asked]))
        return row["kv_dram_bytes"], row["kv_disk_bytes"]

    assert sizes([]) == (100, 200)
    assert sizes(replicas) == (90, 192)
