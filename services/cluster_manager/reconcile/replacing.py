"""Replicas that hold an older revision: replaced one at a time while the others serve."""

from services.cluster_manager.reconcile.actions import UnloadModel
from services.cluster_manager.reconcile.drains import can_have_work, is_empty
from services.cluster_manager.reconcile.placement import Placement
from services.cluster_manager.reconcile.state import (
    ClusterState,
    MemberState,
    Phase,
    WantedDeployment,
)


def is_outdated(state: ClusterState, wanted: WantedDeployment, member: MemberState) -> bool:
    assignment = state.assignments.get(member.id)
    if assignment is None:  # it was told by a former leader, and says itself what it holds
        return member.content not in ("", wanted.content)
    return assignment.content != wanted.content


def has_left(
    state: ClusterState, member: MemberState, placement: Placement, why: str, now: float
) -> bool:
    """Whether nothing runs on it any more; what may have work is drained first."""
    if not can_have_work(member):
        return True
    placement.leaving[member.id] = why
    return is_empty(state, member, now)


def replace_outdated(
    state: ClusterState,
    wanted: WantedDeployment,
    holders: list[MemberState],
    free: list[MemberState],
    placement: Placement,
    now: float,
) -> None:
    """A free task executor takes the change first; without one, one replica is emptied for it."""
    current = [it for it in holders if not is_outdated(state, wanted, it)]
    outdated = [it for it in holders if it not in current and can_have_work(it)]
    if not outdated or len(current) >= wanted.replicas:
        return  # those that are too many by now are shed
    if not _is_whole(state, wanted, holders) or placement.load(wanted, free):
        return
    # Who drains already goes first, then who has least to end.
    first = min(outdated, key=lambda it: (it.id not in state.draining, it.in_flight or 0))
    if has_left(state, first, placement, "is to load the changed deployment", now):
        placement.actions.append(UnloadModel(first.id, wanted.name))


def _is_whole(state: ClusterState, wanted: WantedDeployment, holders: list[MemberState]) -> bool:
    """Every replica that can be there serves: one may go for a while."""
    is_unloading = any(
        it.phase is Phase.UNLOADING and it.deployment == wanted.name
        for it in state.assignments.values()
    )
    is_growing = state.pods is not None and len(holders) < wanted.replicas
    return not is_unloading and not is_growing and all(can_have_work(it) for it in holders)
