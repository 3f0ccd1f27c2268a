"""The rules, one at a time."""

from dataclasses import replace

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import LoadModel, StartPod, StopPod, UnloadModel
from services.cluster_manager.reconcile.rules import reconcile
from services.cluster_manager.reconcile.state import (
    Assignment,
    ClusterState,
    Hearing,
    MemberState,
    Phase,
    Pod,
)
from tests.unit.cluster_manager.world import BLANK, JE, READY, TE, task_executor, wanted

NOW = 100.0
HEARING = Hearing(0.0, NOW)


def pod(name: str, kind: types.MemberKind.ValueType = TE, **fields: int) -> Pod:
    pid = fields.get("pid", 1)
    return Pod(name, kind, pid, pid > 0, fields.get("since", 0), fields.get("seen_at", 0))


def ready(id: str, deployment: str = "demo", in_flight: int | None = 0) -> MemberState:
    it = replace(task_executor(id, READY), deployment=deployment, in_flight=in_flight)
    return replace(it, heard_at=NOW)


def cluster(*members: MemberState, **fields: object) -> ClusterState:
    by_id = {member.id: replace(member, heard_at=NOW) for member in members}
    pods = {member.id: pod(member.id, member.kind) for member in members}
    state = ClusterState(members=by_id, pods=pods, hearing=HEARING)
    return replace(state, **fields)  # type: ignore[arg-type]


def test_job_executors_are_started_without_any_deployment() -> None:
    assert reconcile(cluster(job_executors=2), NOW) == [
        StartPod(JE, "je-0"),
        StartPod(JE, "je-1"),
    ]


def test_the_lowest_free_name_is_taken() -> None:
    state = cluster(ready("te-0"), ready("te-2"), deployments={"demo": wanted("demo", 4)})
    assert reconcile(state, NOW) == [StartPod(TE, "te-1", "cpu"), StartPod(TE, "te-3", "cpu")]


def test_nothing_is_started_while_the_driver_is_silent() -> None:
    state = cluster(job_executors=2, deployments={"demo": wanted("demo")}, pods=None)
    assert reconcile(state, NOW) == []


def test_a_blank_task_executor_comes_before_a_new_pod() -> None:
    state = cluster(task_executor("te-7"), deployments={"demo": wanted("demo", 2)})
    assert reconcile(state, NOW) == [LoadModel("te-7", "demo"), StartPod(TE, "te-0", "cpu")]


def test_a_task_executor_of_another_device_is_left_alone() -> None:
    other = replace(task_executor("guest"), device="npu")
    state = cluster(other, deployments={"demo": wanted("demo")}, pods={})
    assert reconcile(state, NOW) == [StartPod(TE, "te-0", "cpu")]


def test_a_pod_on_its_way_is_waited_for() -> None:
    state = cluster(deployments={"demo": wanted("demo")}, pods={"te-0": pod("te-0", pid=0)})
    assert reconcile(state, NOW) == []


def test_a_failed_load_waits_for_its_time() -> None:
    failed = Assignment("demo", "a", Phase.FAILED, 90.0, failures=1, retry_at=105.0)
    state = cluster(
        task_executor("te-0"),
        deployments={"demo": wanted("demo")},
        assignments={"te-0": failed},
    )
    assert reconcile(state, NOW) == []
    state = replace(state, hearing=Hearing(0.0, 105.0))
    assert reconcile(state, 105.0) == [LoadModel("te-0", "demo")]


def test_a_model_that_was_forgotten_is_loaded_again() -> None:
    loaded = Assignment("demo", "a", Phase.LOADED, NOW - 1)
    state = cluster(
        task_executor("te-0"),
        deployments={"demo": wanted("demo")},
        assignments={"te-0": loaded},
    )
    assert reconcile(state, NOW) == []
    assert reconcile(replace(state, hearing=Hearing(0, NOW + 1)), NOW + 1) == [
        LoadModel("te-0", "demo")
    ]


def test_an_outdated_model_is_replaced_once_nothing_runs_on_it() -> None:
    loaded = Assignment("demo", "old", Phase.LOADED, 0.0)
    state = cluster(
        ready("te-0", in_flight=1),
        deployments={"demo": wanted("demo")},
        assignments={"te-0": loaded},
    )
    assert reconcile(state, NOW) == []
    idle = cluster(
        ready("te-0"), deployments={"demo": wanted("demo")}, assignments={"te-0": loaded}
    )
    assert reconcile(idle, NOW) == [UnloadModel("te-0", "demo")]
    # While it unloads it is still the one that will hold the new model.
    unloading = {"te-0": Assignment("demo", "", Phase.UNLOADING, NOW)}
    assert reconcile(replace(idle, assignments=unloading), NOW) == []


def test_what_is_undeployed_is_unloaded_even_with_work_on_it() -> None:
    assert reconcile(cluster(ready("te-0", in_flight=3)), NOW) == [UnloadModel("te-0", "demo")]


def test_only_a_surely_idle_surplus_is_stopped() -> None:
    for load, stops in ((0, [StopPod("te-1")]), (1, []), (None, [])):
        state = cluster(
            ready("te-0", in_flight=1),
            ready("te-1", in_flight=load),
            deployments={"demo": wanted("demo")},
        )
        assert reconcile(state, NOW) == stops
        assert reconcile(replace(state, hearing=None), NOW) == []


def test_an_unconfirmed_member_is_neither_used_nor_stopped() -> None:
    remembered = replace(task_executor("te-0", BLANK), is_confirmed=False)
    assert reconcile(cluster(remembered), NOW) == []
    assert reconcile(cluster(remembered, deployments={"demo": wanted("demo")}), NOW) == []


def test_a_surplus_pod_without_a_member_is_given_time_to_speak() -> None:
    young = cluster(pods={"te-0": pod("te-0", seen_at=98)})
    assert reconcile(young, NOW) == []
    assert reconcile(replace(young, pods={"te-0": pod("te-0")}), NOW) == [StopPod("te-0")]


def test_surplus_job_executors_go_from_the_top_and_idle() -> None:
    members = [replace(ready(f"je-{i}", ""), kind=JE, in_flight=i % 2) for i in range(4)]
    assert reconcile(cluster(*members, job_executors=2), NOW) == [
        StopPod("je-2"),
        StopPod("je-0"),
    ]
