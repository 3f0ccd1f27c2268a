"""The members, as they registered and as they were heard."""

from dataclasses import dataclass

from deepflow.errors import Conflict, InvalidRequest
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.reconcile.state import Hearing, MemberState

MEMBERS_MAX = 10_000
DEPARTED_MAX = 10_000
ID_LENGTH_MAX = 128


@dataclass(slots=True)
class Entry:
    member: cluster_pb2.Member
    heard_at: float
    in_flight: int | None = None
    is_confirmed: bool = True


class Roster:
    """Every change says whether the view changed with it. Times are passed in."""

    def __init__(self, member_timeout: float) -> None:
        self._member_timeout = member_timeout
        self._entries: dict[str, Entry] = {}
        # Lives that are known to be over: a late heartbeat does not bring them back.
        self._departed: dict[str, int] = {}
        self.hearing: Hearing | None = None

    def register(self, member: cluster_pb2.Member, now: float) -> bool:
        """A new life replaces the old one at once; an older one is refused."""
        _check(member)
        if self._is_over(member.id, member.incarnation):
            raise Conflict(f"a later process of member {member.id} is known, or it left")
        entry = self._entries.get(member.id)
        if entry is None and len(self._entries) >= MEMBERS_MAX:
            raise Conflict(f"the cluster has {MEMBERS_MAX} members and takes no more")
        return self._put(entry, member, now)

    def deregister(self, id: str, incarnation: int) -> bool:
        if self._is_over(id, incarnation):
            return False
        self._bury(id, incarnation)
        return self._entries.pop(id, None) is not None

    def hear(self, beat: events_pb2.Heartbeat, now: float) -> bool:
        """Adopts whoever is unknown: after a restart of this manager that is everybody."""
        if self._is_over(beat.id, beat.incarnation) or beat.member.id != beat.id:
            return False
        self._note_hearing(now)
        entry = self._entries.get(beat.id)
        if entry is not None and entry.member.kind != beat.member.kind:
            return False  # somebody of another kind took this name
        changed = False
        if entry is None or _is_news(beat.member, entry):
            if entry is None and len(self._entries) >= MEMBERS_MAX:
                return False
            changed = self._put(entry, beat.member, now)
            entry = self._entries[beat.id]
        entry.heard_at = now
        entry.in_flight = beat.load.waiting + beat.load.running
        return changed

    def remember(self, members: list[cluster_pb2.Member], now: float) -> None:
        """Members of a stored view: they stay until they speak, or fall silent by the rule."""
        for member in members:
            if member.state == types.LIFECYCLE_STATE_DRAINING:
                # Perhaps by the former leader's word only; its own comes with its next heartbeat.
                member.state = types.LIFECYCLE_STATE_READY
            if member.id not in self._entries and member.kind != types.MEMBER_KIND_CLUSTER_MANAGER:
                self._entries[member.id] = Entry(member, now, is_confirmed=False)

    def remove(self, id: str, incarnation: int, *, is_certain: bool) -> bool:
        entry = self._entries.get(id)
        if entry is None or entry.member.incarnation != incarnation:
            return False
        if is_certain:
            self._bury(id, incarnation)
        del self._entries[id]
        return True

    def clear(self) -> None:
        self._entries.clear()
        self.hearing = None

    def get(self, id: str) -> cluster_pb2.Member | None:
        entry = self._entries.get(id)
        return entry.member if entry else None

    def members(self) -> list[cluster_pb2.Member]:
        return [entry.member for entry in self._entries.values()]

    def states(self) -> dict[str, MemberState]:
        return {id: _state(entry) for id, entry in self._entries.items()}

    def _put(self, entry: Entry | None, member: cluster_pb2.Member, now: float) -> bool:
        if entry is not None and entry.member.incarnation == member.incarnation:
            changed = entry.member != member or not entry.is_confirmed
            entry.member, entry.heard_at, entry.is_confirmed = member, now, True
            return changed
        self._entries[member.id] = Entry(member, now)
        return True

    def _note_hearing(self, now: float) -> None:
        before = self.hearing
        is_fresh_run = before is None or now - before.last > self._member_timeout / 2
        self.hearing = Hearing(now if is_fresh_run or before is None else before.since, now)

    def _is_over(self, id: str, incarnation: int) -> bool:
        entry = self._entries.get(id)
        if entry is not None and incarnation < entry.member.incarnation:
            return True
        return incarnation <= self._departed.get(id, -1)

    def _bury(self, id: str, incarnation: int) -> None:
        self._departed.pop(id, None)
        self._departed[id] = incarnation
        if len(self._departed) > DEPARTED_MAX:
            del self._departed[next(iter(self._departed))]


def _is_news(member: cluster_pb2.Member, entry: Entry) -> bool:
    """A heartbeat may overtake a registration, or be overtaken: the later state counts."""
    if not entry.is_confirmed or member.incarnation > entry.member.incarnation:
        return True
    return member.state_since_unix_ms >= entry.member.state_since_unix_ms and member != entry.member


def _state(entry: Entry) -> MemberState:
    member = entry.member
    return MemberState(
        id=member.id,
        kind=member.kind,
        incarnation=member.incarnation,
        state=member.state,
        heard_at=entry.heard_at,
        deployment=member.deployment,
        device=member.capabilities.device,
        content=member.content,
        pid=member.pid,
        started_unix_ms=member.started_unix_ms,
        in_flight=entry.in_flight,
        is_confirmed=entry.is_confirmed,
    )


def _check(member: cluster_pb2.Member) -> None:
    if not member.id or len(member.id) > ID_LENGTH_MAX:
        raise InvalidRequest(
            f"member.id must have 1 to {ID_LENGTH_MAX} characters", param="member.id"
        )
    if member.kind == types.MEMBER_KIND_UNSPECIFIED:
        raise InvalidRequest("member.kind is not set", param="member.kind")
    if not member.incarnation:
        raise InvalidRequest("member.incarnation is not set", param="member.incarnation")
