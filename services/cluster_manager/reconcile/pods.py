"""How many pods run, and which are stopped."""

from collections.abc import Iterator
from itertools import count

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import StartPod, StopPod, UnloadModel
from services.cluster_manager.reconcile.drains import can_have_work, is_empty
from services.cluster_manager.reconcile.models import natural
from services.cluster_manager.reconcile.placement import Placement
from services.cluster_manager.reconcile.state import ClusterState, Kind, Pod

STEMS: dict[Kind, str] = {
    types.MEMBER_KIND_JOB_EXECUTOR: "je",
    types.MEMBER_KIND_TASK_EXECUTOR: "te",
    types.MEMBER_KIND_GATEWAY: "gateway",
}


def plan_sizes(state: ClusterState, placement: Placement, now: float) -> list[StartPod | StopPod]:
    """As many of each kind as are wanted."""
    if state.pods is None:
        return []
    return [
        action
        for kind, count in state.sizes.items()
        for action in _plan_size(state, placement, now, kind, count)
    ]


def _plan_size(
    state: ClusterState, placement: Placement, now: float, kind: Kind, wanted: int
) -> list[StartPod | StopPod]:
    """Those beyond the wanted number are emptied, and stopped once they are."""
    pods = _pods(state, kind)
    surplus = len(pods) - wanted
    if surplus <= 0:
        names = _free_names(state, kind)
        return [StartPod(kind, next(names)) for _ in range(-surplus)]
    # Who drains already goes first, then the youngest names.
    going = sorted(reversed(pods), key=lambda pod: pod.name not in state.draining)[:surplus]
    for pod in going:
        if pod.name in state.members:
            placement.leaving[pod.name] = "scaled down"
    return [StopPod(pod.name) for pod in going if _has_left(state, pod, now)]


def plan_task_executors(
    state: ClusterState, placement: Placement, now: float
) -> list[StartPod | StopPod | UnloadModel]:
    """Pods for the replicas that nobody is there for; an end to those that hold nothing."""
    kind, shed = types.MEMBER_KIND_TASK_EXECUTOR, _shed(state, placement, now)
    if state.pods is None:
        return shed
    spare = [StopPod(name) for name in placement.spare if name in state.pods]
    without_member = [pod for pod in _pods(state, kind) if pod.name not in state.members]
    surplus = len(without_member) + len(placement.coming) - len(placement.missing)
    if surplus < 0:
        return [*shed, *spare, *_starts(state, placement.missing[surplus:])]
    stoppable = [*reversed(without_member), *_still_starting(state, placement)]
    stops = [StopPod(pod.name) for pod in stoppable if _is_idle(state, pod, now)]
    return [*shed, *spare, *stops[:surplus]]


def _still_starting(state: ClusterState, placement: Placement) -> list[Pod]:
    """Those that unload or are not confirmed may yet have work; they will be spare soon."""
    pods = state.pods or {}
    starting = types.LIFECYCLE_STATE_STARTING
    return [
        pods[name]
        for name in reversed(placement.coming)
        if name in pods and state.members[name].state == starting and name not in state.assignments
    ]


def _pods(state: ClusterState, kind: Kind) -> list[Pod]:
    pods = state.pods or {}
    found = [pod for pod in pods.values() if pod.kind == kind and not pod.is_stopping]
    return sorted(found, key=lambda pod: natural(pod.name))


def _starts(state: ClusterState, devices: list[str]) -> list[StartPod]:
    kind = types.MEMBER_KIND_TASK_EXECUTOR
    return [
        StartPod(kind, name, device)
        for name, device in zip(_free_names(state, kind), devices, strict=False)
    ]


def _shed(
    state: ClusterState, placement: Placement, now: float
) -> list[StartPod | StopPod | UnloadModel]:
    """Scale down: only those that were drained, or say that they never had work."""
    actions: list[StartPod | StopPod | UnloadModel] = []
    for name in placement.surplus:
        member = state.members[name]
        if can_have_work(member):
            placement.leaving[name] = "scaled down"
            if not is_empty(state, member, now):
                continue
        elif member.in_flight != 0 or not member.is_confirmed or not state.is_hearing(now):
            continue
        if state.pods is not None and name in state.pods:
            actions.append(StopPod(name))
        else:
            actions.append(UnloadModel(name, member.deployment))
    return actions


def _has_left(state: ClusterState, pod: Pod, now: float) -> bool:
    member = state.members.get(pod.name)
    if member is not None and can_have_work(member):
        return is_empty(state, member, now)
    return _is_idle(state, pod, now)


def _is_idle(state: ClusterState, pod: Pod, now: float) -> bool:
    """Surely without work. Not knowing is not idle: silence may be NATS's, not the pod's."""
    if not state.is_hearing(now):
        return False
    member = state.members.get(pod.name)
    if member is None:
        return now - pod.seen_at >= state.member_timeout
    return member.is_confirmed and member.in_flight == 0


def _free_names(state: ClusterState, kind: Kind) -> Iterator[str]:
    taken = {*(state.pods or {}), *state.members}
    names = (f"{STEMS[kind]}-{number}" for number in count())
    return (name for name in names if name not in taken)
