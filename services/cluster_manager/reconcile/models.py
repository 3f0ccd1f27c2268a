"""Which task executor holds which deployment."""

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import LoadModel, UnloadModel
from services.cluster_manager.reconcile.drains import can_have_work
from services.cluster_manager.reconcile.placement import Placement
from services.cluster_manager.reconcile.replacing import has_left, is_outdated, replace_outdated
from services.cluster_manager.reconcile.state import (
    LEAVING,
    LOADABLE,
    Assignment,
    ClusterState,
    MemberState,
    Phase,
    WantedDeployment,
)

# A task executor that said "loaded" and is blank this long after has lost the model again.
FORGOTTEN_SECONDS = 2.0


def place_models(state: ClusterState, now: float) -> Placement:
    placement = Placement()
    holders, free = _sort_by_holding(state, placement, now)
    for wanted in state.deployments.values():
        chosen = _keep_best(state, wanted, holders.get(wanted.name, []), placement)
        for member in chosen:
            _maintain(state, wanted, member, placement, now)
        _fill(wanted, wanted.replicas - len(chosen), free, placement)
    for wanted in state.deployments.values():
        replace_outdated(state, wanted, holders.get(wanted.name, []), free, placement, now)
    placement.spare = [member.id for member in free]
    return placement


def _sort_by_holding(
    state: ClusterState, placement: Placement, now: float
) -> tuple[dict[str, list[MemberState]], list[MemberState]]:
    """Holders by deployment, and those that are free; unloads what nobody wants any more."""
    holders: dict[str, list[MemberState]] = {}
    free: list[MemberState] = []
    for member in _usable_task_executors(state):
        held = _held(state, member)
        if held in state.deployments:
            holders.setdefault(held, []).append(member)
        elif held:
            if has_left(state, member, placement, "undeployed", now):
                placement.actions.append(UnloadModel(member.id, held))
        elif _is_free(state, member):
            free.append(member)
        else:
            placement.coming.append(member.id)
    return holders, free


def _usable_task_executors(state: ClusterState) -> list[MemberState]:
    return sorted(
        (
            member
            for member in state.members.values()
            if member.kind == types.MEMBER_KIND_TASK_EXECUTOR
            and member.state not in LEAVING
            and not state.is_stopping(member.id)
        ),
        key=lambda member: natural(member.id),
    )


def _held(state: ClusterState, member: MemberState) -> str:
    """The one deployment this task executor has, gets or is still to get rid of; else empty."""
    assignment = state.assignments.get(member.id)
    if assignment is None:
        return member.deployment
    if assignment.phase is Phase.UNLOADING:
        return ""
    is_wanted = assignment.deployment in state.deployments
    if not is_wanted and assignment.phase is not Phase.LOADING and member.state in LOADABLE:
        return ""
    return assignment.deployment


def _is_free(state: ClusterState, member: MemberState) -> bool:
    assignment = state.assignments.get(member.id)
    is_unloading = assignment is not None and assignment.phase is Phase.UNLOADING
    return member.state in LOADABLE and member.is_confirmed and not is_unloading


def _keep_best(
    state: ClusterState, wanted: WantedDeployment, holders: list[MemberState], placement: Placement
) -> list[MemberState]:
    """As many holders as wanted; the others are surplus, those that are least useful first.

    What serves goes on serving until those that stay do: a change may be under way.
    """
    ranked = sorted(holders, key=lambda member: _uselessness(state, wanted, member))
    chosen, others = ranked[: wanted.replicas], ranked[wanted.replicas :]
    all_serve = all(can_have_work(it) and not is_outdated(state, wanted, it) for it in chosen)
    placement.surplus += [it.id for it in others if all_serve or not can_have_work(it)]
    return chosen


def _uselessness(
    state: ClusterState, wanted: WantedDeployment, member: MemberState
) -> tuple[bool, int, bool, bool]:
    """Who drains already goes on draining, however the load moves meanwhile."""
    assignment = state.assignments.get(member.id)
    has_failed = assignment is not None and assignment.phase is Phase.FAILED
    is_ready = member.state == types.LIFECYCLE_STATE_READY
    return (
        is_outdated(state, wanted, member),
        0 if is_ready else 2 if has_failed else 1,
        member.id in state.draining,
        not member.in_flight,
    )


def _maintain(
    state: ClusterState,
    wanted: WantedDeployment,
    member: MemberState,
    placement: Placement,
    now: float,
) -> None:
    """Reload what failed or was forgotten; take back an outdated load that is under way."""
    assignment = state.assignments.get(member.id)
    if assignment is None:
        if _is_blank(member):  # it failed while nobody led
            placement.actions.append(LoadModel(member.id, wanted.name))
        return
    if assignment.content != wanted.content and not _is_blank(member):
        if not can_have_work(member):
            placement.actions.append(UnloadModel(member.id, wanted.name))
    elif _is_due(assignment, member, wanted, now):
        placement.actions.append(LoadModel(member.id, wanted.name))


def _is_due(
    assignment: Assignment, member: MemberState, wanted: WantedDeployment, now: float
) -> bool:
    if not _is_blank(member):
        return False
    if assignment.phase is Phase.FAILED:
        return now >= assignment.retry_at or assignment.content != wanted.content
    return assignment.phase is Phase.LOADED and now - assignment.changed_at >= FORGOTTEN_SECONDS


def _is_blank(member: MemberState) -> bool:
    return member.state in LOADABLE


def _fill(
    wanted: WantedDeployment, count: int, free: list[MemberState], placement: Placement
) -> None:
    """Give the deployment free task executors; note how many are missing."""
    for _ in range(count):
        if not placement.load(wanted, free):
            placement.missing.append(wanted.device)


def natural(name: str) -> tuple[str, int, str]:
    """Sorts te-2 before te-10."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number), name) if number.isdecimal() else (name, -1, name)
