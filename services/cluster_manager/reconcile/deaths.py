"""Who is to be given up, and who is only not heard."""

from services.cluster_manager.reconcile.actions import MarkDead
from services.cluster_manager.reconcile.pods import STEMS
from services.cluster_manager.reconcile.state import ClusterState, MemberState


def find_dead(state: ClusterState, now: float) -> list[MarkDead]:
    dead = []
    for member in state.members.values():
        if reason := _ended(state, member):
            dead.append(MarkDead(member.id, member.incarnation, reason, is_certain=True))
        elif _is_of_a_former_stack(state, member):
            reason = "the driver has no such process"
            dead.append(MarkDead(member.id, member.incarnation, reason, is_certain=False))
        elif silence := _silence(state, member, now):
            reason = f"not heard for {silence:.1f} s while others were"
            dead.append(MarkDead(member.id, member.incarnation, reason, is_certain=False))
    return dead


def _ended(state: ClusterState, member: MemberState) -> str:
    """The driver's word on the process behind the member; empty where it does not know better.

    A report may be older than the member: only one from after the member's start counts.
    """
    if state.gone_pods.get(member.id, 0) > member.started_unix_ms > 0:
        return "its process is gone"
    pod = state.pods.get(member.id) if state.pods else None
    if pod is None or not member.pid or pod.since_unix_ms <= member.started_unix_ms:
        return ""
    if not pod.is_running:
        return "its process ended"
    return "its process was restarted" if pod.pid and pod.pid != member.pid else ""


def _is_of_a_former_stack(state: ClusterState, member: MemberState) -> bool:
    """Remembered, named like one of our pods, not heard since, and no pod of ours.

    Not certain: should such a process run elsewhere, its next heartbeat brings it back.
    """
    if state.pods is None or member.is_confirmed or member.kind not in STEMS:
        return False
    return member.id.startswith(f"{STEMS[member.kind]}-") and member.id not in state.pods


def _silence(state: ClusterState, member: MemberState, now: float) -> float:
    """Seconds of silence beyond what a member may take, counted while heartbeats of others arrive.

    When NATS comes back after a while, everybody has been silent for as long: counting starts with
    the first heartbeat after the pause, and who has to connect again first may take twice as long.
    """
    hearing = state.hearing
    if hearing is None or not state.is_hearing(now) or hearing.last <= member.heard_at:
        return 0.0
    is_back = member.heard_at >= hearing.since
    silence = now - (member.heard_at if is_back else hearing.since)
    longest = state.member_timeout if is_back else 2 * state.member_timeout
    return silence if silence > longest else 0.0
