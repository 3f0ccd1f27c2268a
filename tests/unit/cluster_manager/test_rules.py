"""The rules, one at a time."""

from dataclasses import replace

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import (
    Drain,
    LoadModel,
    Resume,
    StartPod,
    StopPod,
    UnloadModel,
)
from services.cluster_manager.reconcile.rules import reconcile
from services.cluster_manager.reconcile.state import (
    Assignment,
    ClusterState,
    Hearing,
    MemberState,
    Phase,
    Pod,
)
from tests.unit.cluster_manager.world import BLANK, JE, LOADING, READY, TE, task_executor, wanted

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
    assert reconcile(cluster(sizes={JE: 2}), NOW) == [
        StartPod(JE, "je-0"),
        StartPod(JE, "je-1"),
    ]


def test_the_lowest_free_name_is_taken() -> None:
    state = cluster(ready("te-0"), ready("te-2"), deployments={"demo": wanted("demo", 4)})
    assert reconcile(state, NOW) == [StartPod(TE, "te-1", "cpu"), StartPod(TE, "te-3", "cpu")]


def test_nothing_is_started_while_the_driver_is_silent() -> None:
    state = cluster(sizes={JE: 2}, deployments={"demo": wanted("demo")}, pods=None)
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


OUTDATED = Assignment("demo", "old", Phase.LOADED, 0.0)
CHANGE = "is to load the changed deployment"


def drained(state: ClusterState, *ids: str) -> ClusterState:
    return replace(state, draining={id: NOW - 3 for id in ids})


def test_an_outdated_model_is_replaced_once_nothing_runs_on_it() -> None:
    wanted_now = {"demo": wanted("demo")}
    busy = cluster(
        ready("te-0", in_flight=1), deployments=wanted_now, assignments={"te-0": OUTDATED}
    )
    assert reconcile(busy, NOW) == [Drain("te-0", CHANGE)]
    assert reconcile(drained(busy, "te-0"), NOW) == []
    idle = cluster(ready("te-0"), deployments=wanted_now, assignments={"te-0": OUTDATED})
    assert reconcile(drained(idle, "te-0"), NOW) == [UnloadModel("te-0", "demo")]
    # While it unloads it is still the one that will hold the new model.
    unloading = {"te-0": Assignment("demo", "", Phase.UNLOADING, NOW)}
    assert reconcile(replace(drained(idle, "te-0"), assignments=unloading), NOW) == []


def test_what_a_former_leader_loaded_is_known_by_its_own_word() -> None:
    old = replace(ready("te-0"), content="old")
    assert reconcile(cluster(old, deployments={"demo": wanted("demo")}), NOW) == [
        Drain("te-0", CHANGE)
    ]
    new = replace(ready("te-0"), content="a")
    assert reconcile(cluster(new, deployments={"demo": wanted("demo")}), NOW) == []


def test_replicas_are_replaced_one_at_a_time() -> None:
    state = cluster(
        ready("te-0", in_flight=2),
        ready("te-1", in_flight=1),
        deployments={"demo": wanted("demo", 2)},
        assignments={"te-0": OUTDATED, "te-1": OUTDATED},
    )
    assert reconcile(state, NOW) == [Drain("te-1", CHANGE)]
    loading = {"te-0": OUTDATED, "te-1": Assignment("demo", "a", Phase.LOADING, NOW)}
    members = {**state.members, "te-1": replace(state.members["te-1"], state=LOADING)}
    assert reconcile(replace(state, members=members, assignments=loading), NOW) == []
    done = {"te-0": OUTDATED, "te-1": Assignment("demo", "a", Phase.LOADED, NOW)}
    assert reconcile(replace(state, assignments=done), NOW) == [Drain("te-0", CHANGE)]


def test_what_is_undeployed_ends_its_work_first() -> None:
    state = cluster(ready("te-0", in_flight=3))
    assert reconcile(state, NOW) == [Drain("te-0", "undeployed")]
    assert reconcile(drained(state, "te-0"), NOW) == []
    grace_over = replace(state, draining={"te-0": NOW - 61})
    assert reconcile(grace_over, NOW) == [UnloadModel("te-0", "demo")]


def test_a_drain_is_believed_only_after_everybody_could_learn_of_it() -> None:
    state = cluster(ready("te-0"))
    just_now = replace(state, draining={"te-0": NOW - 1})
    assert reconcile(just_now, NOW) == []
    heard_again = replace(drained(state, "te-0"), hearing=Hearing(NOW - 1, NOW))
    assert reconcile(heard_again, NOW) == []
    nobody_heard = replace(state, draining={"te-0": NOW - 61}, hearing=None)
    assert reconcile(nobody_heard, NOW) == []


def test_only_a_surely_idle_surplus_is_stopped() -> None:
    for load, stops in ((0, [StopPod("te-1")]), (1, []), (None, [])):
        state = cluster(
            ready("te-0", in_flight=1),
            ready("te-1", in_flight=load),
            deployments={"demo": wanted("demo")},
        )
        assert reconcile(state, NOW) == [Drain("te-1", "scaled down")]
        assert reconcile(drained(state, "te-1"), NOW) == stops
        assert reconcile(replace(drained(state, "te-1"), hearing=None), NOW) == []


def test_who_drains_goes_on_draining_however_the_load_moves() -> None:
    state = cluster(ready("te-0"), ready("te-1", in_flight=5), deployments={"demo": wanted("demo")})
    assert reconcile(drained(state, "te-1"), NOW) == []


def test_a_member_that_is_wanted_again_gets_work_again() -> None:
    state = drained(cluster(ready("te-0"), deployments={"demo": wanted("demo")}), "te-0")
    assert reconcile(state, NOW) == [Resume("te-0")]


def test_an_unconfirmed_member_is_neither_used_nor_stopped() -> None:
    remembered = replace(task_executor("te-0", BLANK), is_confirmed=False)
    assert reconcile(cluster(remembered), NOW) == []
    assert reconcile(cluster(remembered, deployments={"demo": wanted("demo")}), NOW) == []


def test_a_surplus_pod_without_a_member_is_given_time_to_speak() -> None:
    young = cluster(pods={"te-0": pod("te-0", seen_at=98)})
    assert reconcile(young, NOW) == []
    assert reconcile(replace(young, pods={"te-0": pod("te-0")}), NOW) == [StopPod("te-0")]


def test_surplus_job_executors_go_from_the_top_once_they_are_idle() -> None:
    members = [replace(ready(f"je-{i}", ""), kind=JE, in_flight=i % 2) for i in range(4)]
    state = cluster(*members, sizes={JE: 2})
    why = "scaled down"
    assert reconcile(state, NOW) == [Drain("je-3", why), Drain("je-2", why)]
    assert reconcile(drained(state, "je-3", "je-2"), NOW) == [StopPod("je-2")]
