"""Who is to become empty before it goes, and who is empty by now."""

from collections.abc import Mapping

from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.actions import Drain, Resume
from services.cluster_manager.reconcile.state import ClusterState, MemberState, Phase


def is_empty(state: ClusterState, member: MemberState, now: float) -> bool:
    """It gets nothing new and nothing runs on it, or its grace is over.

    Not knowing is not empty: while nobody is heard, nobody has learnt of the drain either.
    """
    since = state.draining.get(member.id)
    if since is None or state.hearing is None or not state.is_hearing(now):
        return False
    began = max(since, state.hearing.since)
    if now - began > state.drain_grace:
        return True
    has_said_so = member.is_confirmed and member.heard_at >= began + state.drain_settle
    return has_said_so and member.in_flight == 0


def plan_drains(state: ClusterState, leaving: Mapping[str, str]) -> list[Drain | Resume]:
    """`leaving`: who is to become empty, and why."""
    begun = [Drain(id, why) for id, why in leaving.items() if id not in state.draining]
    over = [Resume(id) for id in state.draining if id not in leaving and not _is_going(state, id)]
    return [*begun, *over]


def can_have_work(member: MemberState) -> bool:
    return member.state == types.LIFECYCLE_STATE_READY


def _is_going(state: ClusterState, id: str) -> bool:
    """It was empty and is being stopped or unloaded: no time to send it work again."""
    it = state.assignments.get(id)
    is_unloading = it is not None and it.phase is Phase.UNLOADING
    return id in state.members and (is_unloading or state.is_stopping(id))
