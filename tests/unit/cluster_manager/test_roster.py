"""Members as they register, speak and leave."""

import pytest

from deepflow.errors import Conflict, InvalidRequest
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from services.cluster_manager.masters.roster import Roster


def member(incarnation: int = 1, since: int = 1, **fields: object) -> cluster_pb2.Member:
    it = cluster_pb2.Member(
        id="te-0",
        kind=types.MEMBER_KIND_TASK_EXECUTOR,
        incarnation=incarnation,
        state_since_unix_ms=since,
    )
    for name, value in fields.items():
        setattr(it, name, value)
    return it


def beat(of: cluster_pb2.Member, running: int = 0) -> events_pb2.Heartbeat:
    load = events_pb2.Load(running=running, waiting=1)
    return events_pb2.Heartbeat(id=of.id, incarnation=of.incarnation, member=of, load=load)


@pytest.fixture
def roster() -> Roster:
    return Roster(member_timeout=5.0)


def test_registering_twice_changes_nothing(roster: Roster) -> None:
    assert roster.register(member(), 1.0)
    assert not roster.register(member(), 2.0)
    assert roster.states()["te-0"].heard_at == 2.0


def test_a_new_life_replaces_the_old_and_an_old_one_is_refused(roster: Roster) -> None:
    roster.register(member(1), 1.0)
    roster.hear(beat(member(1), running=4), 1.0)
    assert roster.register(member(2), 2.0)
    assert roster.states()["te-0"].in_flight is None
    with pytest.raises(Conflict):
        roster.register(member(1), 3.0)
    assert not roster.hear(beat(member(1)), 3.0)


def test_a_heartbeat_adopts_whoever_is_unknown(roster: Roster) -> None:
    assert roster.hear(beat(member(), running=2), 1.0)
    assert roster.states()["te-0"].in_flight == 3
    assert not roster.hear(beat(member(), running=5), 2.0)
    assert roster.states()["te-0"].in_flight == 6


def test_a_late_heartbeat_does_not_undo_a_registration(roster: Roster) -> None:
    roster.register(member(since=5, detail="new"), 1.0)
    roster.hear(beat(member(since=4, detail="old")), 1.1)
    assert roster.members()[0].detail == "new"
    roster.hear(beat(member(since=5, detail="newer")), 1.2)
    assert roster.members()[0].detail == "newer"


def test_who_left_stays_away_until_a_new_life(roster: Roster) -> None:
    roster.register(member(3), 1.0)
    assert not roster.deregister("te-0", 2)
    assert roster.deregister("te-0", 3)
    assert not roster.hear(beat(member(3)), 2.0)
    with pytest.raises(Conflict):
        roster.register(member(3), 2.0)
    assert roster.register(member(4), 3.0)


def test_who_only_fell_silent_may_come_back(roster: Roster) -> None:
    roster.register(member(), 1.0)
    assert roster.remove("te-0", 1, is_certain=False)
    assert roster.hear(beat(member()), 9.0)
    assert roster.remove("te-0", 1, is_certain=True)
    assert not roster.hear(beat(member()), 10.0)


def test_a_remembered_member_is_confirmed_by_its_word(roster: Roster) -> None:
    roster.remember([member()], 1.0)
    assert not roster.states()["te-0"].is_confirmed
    assert roster.hear(beat(member()), 2.0)
    assert roster.states()["te-0"].is_confirmed
    roster.remember([member(detail="old news")], 3.0)
    assert roster.members()[0].detail == ""


def test_a_pause_begins_a_new_run_of_hearing(roster: Roster) -> None:
    for now in (1.0, 2.0, 4.0):
        roster.hear(beat(member()), now)
    assert roster.hearing is not None and roster.hearing.since == 1.0
    roster.hear(beat(member()), 9.0)
    assert (roster.hearing.since, roster.hearing.last) == (9.0, 9.0)


@pytest.mark.parametrize(
    ("field", "value"), [("id", ""), ("id", "x" * 129), ("kind", 0), ("incarnation", 0)]
)
def test_a_member_says_who_it_is(roster: Roster, field: str, value: object) -> None:
    bad = member()
    setattr(bad, field, value)
    with pytest.raises(InvalidRequest) as refusal:
        roster.register(bad, 1.0)
    assert refusal.value.param == f"member.{field}"


def test_nobody_of_another_kind_takes_a_name(roster: Roster) -> None:
    roster.register(member(), 1.0)
    stranger = member(incarnation=2, kind=types.MEMBER_KIND_JOB_EXECUTOR)
    assert not roster.hear(beat(stranger), 2.0)
    known = roster.get("te-0")
    assert known is not None
    assert (known.kind, known.incarnation) == (types.MEMBER_KIND_TASK_EXECUTOR, 1)
    assert roster.states()["te-0"].heard_at == 1.0
