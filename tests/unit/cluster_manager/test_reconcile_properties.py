"""Whatever the cluster looks like, the rules bring it to rest where it should be."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import MarkDead, StartPod, StopPod
from services.cluster_manager.reconcile.state import (
    Assignment,
    ClusterState,
    Hearing,
    MemberState,
    Phase,
    Pod,
    WantedDeployment,
)
from tests.unit.cluster_manager.world import BLANK, GW, JE, LOADING, READY, STARTING, TE, World

NAMES = ("apple", "berry", "cherry")


@st.composite
def deployments(draw: st.DrawFn) -> dict[str, WantedDeployment]:
    names = draw(st.sets(st.sampled_from(NAMES)))
    return {
        name: WantedDeployment(name, "cpu", draw(st.integers(1, 3)), draw(st.sampled_from("ab")))
        for name in names
    }


@st.composite
def sizes(draw: st.DrawFn) -> dict[types.MemberKind.ValueType, int]:
    """Without a number, gateways are somebody else's."""
    gateways = draw(st.one_of(st.none(), st.integers(1, 3)))
    return {JE: draw(st.integers(0, 3))} | ({} if gateways is None else {GW: gateways})


@st.composite
def clusters(draw: st.DrawFn) -> ClusterState:
    pods: dict[str, Pod] = {}
    members: dict[str, MemberState] = {}
    assignments: dict[str, Assignment] = {}
    for stem, kind in (("te", TE), ("je", JE), ("gateway", GW), ("guest", TE)):
        for number in draw(st.sets(st.integers(0, 6), max_size=5)):
            name = f"{stem}-{number}"
            if stem != "guest":
                pods[name] = Pod(name, kind, 1, True, 0, seen_at=0.0)
            if stem == "guest" or draw(st.booleans()):
                members[name], assignment = draw(_members(name, kind))
                if assignment:
                    assignments[name] = assignment
    return ClusterState(
        deployments=draw(deployments()),
        sizes=draw(sizes()),
        members=members,
        pods=pods,
        assignments=assignments,
        hearing=draw(st.sampled_from([None, Hearing(0.0, 0.0)])),
    )


@st.composite
def _members(
    draw: st.DrawFn, name: str, kind: types.MemberKind.ValueType
) -> tuple[MemberState, Assignment | None]:
    blank = MemberState(name, TE, 1, BLANK, 0.0, in_flight=draw(st.sampled_from([None, 0])))
    if kind in (JE, GW):
        return replace(blank, kind=kind, state=READY), None
    held = draw(st.sampled_from(NAMES))
    content = draw(st.sampled_from("ab"))
    match draw(st.sampled_from(["blank", "starting", "ready", "adopted", *Phase])):
        case "starting":
            return replace(blank, state=STARTING), None
        case "ready":
            return (
                replace(blank, state=READY, deployment=held),
                Assignment(held, content, Phase.LOADED, 0.0),
            )
        case "adopted":
            return replace(blank, state=READY, deployment=held), None
        case Phase.LOADING:
            return (
                replace(blank, state=LOADING, deployment=held),
                Assignment(held, content, Phase.LOADING, 0.0),
            )
        case Phase.FAILED | Phase.LOADED as phase:
            return blank, Assignment(held, content, phase, 0.0)
        case Phase.UNLOADING:
            return (
                replace(blank, state=READY, deployment=held),
                Assignment(held, content, Phase.UNLOADING, 0.0),
            )
    return blank, None


@settings(max_examples=150, deadline=None)
@given(cluster=clusters(), loads_to_fail=st.integers(0, 4), is_under_load=st.booleans())
def test_it_comes_to_rest_at_the_desired_state(
    cluster: ClusterState, loads_to_fail: int, is_under_load: bool
) -> None:
    world = World(cluster, loads_to_fail=loads_to_fail, is_under_load=is_under_load)
    assert world.run() == []
    for wanted in cluster.deployments.values():
        assert len(world.ready(wanted.name)) == wanted.replicas
        for id in world.ready(wanted.name):
            it = world.state.assignments.get(id)
            assert it is None or it.content == wanted.content
    assert world.state.pods is not None
    kinds = [pod.kind for pod in world.state.pods.values()]
    assert cluster.pods is not None
    for kind in (JE, GW):
        before = sum(pod.kind == kind for pod in cluster.pods.values())
        assert kinds.count(kind) == cluster.sizes.get(kind, before)
    assert kinds.count(TE) <= sum(it.replicas for it in cluster.deployments.values())
    assert all(
        member.deployment in ("", *cluster.deployments) for member in world.state.members.values()
    )


@settings(max_examples=80, deadline=None)
@given(cluster=clusters(), loads_to_fail=st.integers(0, 4))
def test_it_never_starts_more_than_needed(cluster: ClusterState, loads_to_fail: int) -> None:
    world = World(cluster, loads_to_fail=loads_to_fail)
    replicas = sum(it.replicas for it in cluster.deployments.values())
    assert cluster.pods is not None
    world.run()
    starts = [action for action in world.history if isinstance(action, StartPod)]
    for kind in (JE, GW):
        before = sum(pod.kind == kind for pod in cluster.pods.values())
        missing = max(0, cluster.sizes.get(kind, before) - before)
        assert sum(start.kind == kind for start in starts) == missing
    assert sum(start.kind == TE for start in starts) <= replicas
    assert len({start.name for start in starts}) == len(starts)


@settings(max_examples=40, deadline=None)
@given(replicas=st.integers(2, 4), fewer=st.integers(0, 2), loses_its_leader=st.booleans())
def test_a_change_under_load_never_leaves_a_model_unserved(
    replicas: int, fewer: int, loses_its_leader: bool
) -> None:
    demo = WantedDeployment("demo", "cpu", replicas, "a")
    world = World(ClusterState(deployments={"demo": demo}, pods={}), is_under_load=True)
    assert world.run() == []
    changed = replace(demo, content="b", replicas=max(1, replicas - fewer))
    world.state = replace(world.state, deployments={"demo": changed})
    for step in range(60):
        if loses_its_leader and step == 4:  # the next one knows only what members say
            world.state = replace(world.state, assignments={}, draining={})
        world.run(steps=1)
        serving = set(world.ready("demo")) - set(world.state.draining)
        assert len(serving) >= min(changed.replicas, replicas - 1)
    assert world.run(steps=1) == []
    held = {it.content for it in world.state.members.values() if it.deployment == "demo"}
    assert held == {"b"} and len(world.ready("demo")) == changed.replicas


@settings(max_examples=80, deadline=None)
@given(cluster=clusters())
def test_without_nats_nobody_is_removed(cluster: ClusterState) -> None:
    """Blank pods may go (they hold nothing, by their own word); nobody is declared dead."""
    world = World(replace(cluster, hearing=Hearing(0.0, 0.0)), now=TIMEOUT_AND_MORE)
    world.run(nats_is_up=False)
    assert world.count(MarkDead) == 0
    stopped = {action.name for action in world.history if isinstance(action, StopPod)}
    assert not stopped & {id for id in cluster.members if _is_of_use(cluster, id)}


@settings(max_examples=80, deadline=None)
@given(cluster=clusters())
def test_without_a_driver_models_are_still_placed(cluster: ClusterState) -> None:
    world = World(replace(cluster, pods=None))
    assert [action for action in world.run() if isinstance(action, StartPod | StopPod)] == []
    held = [member.deployment for member in world.state.members.values() if member.deployment]
    task_executors = [m for m in world.state.members.values() if m.kind == TE]
    replicas = sum(it.replicas for it in cluster.deployments.values())
    assert len(held) == min(replicas, len(task_executors))


def _is_of_use(cluster: ClusterState, id: str) -> bool:
    """A gateway or job executor, or a task executor that holds what is wanted of it."""
    member, it = cluster.members[id], cluster.assignments.get(id)
    wanted = cluster.deployments.get(member.deployment)
    if member.kind != TE or wanted is None:
        return member.kind != TE
    return it is None or (it.phase is not Phase.UNLOADING and it.content == wanted.content)


TIMEOUT_AND_MORE = 20.0
