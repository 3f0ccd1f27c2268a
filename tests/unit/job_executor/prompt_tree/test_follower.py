"""One follower by itself; tests/unit/common/test_prompt_trees.py has whole histories."""

from deepflow.v1 import events_pb2
from services.job_executor.prompt_tree import follower
from services.job_executor.prompt_tree.follower import PATIENCE_SECONDS, Follower


def batch(first_seq: int, *identities: bytes, incarnation: int = 1) -> events_pb2.KvEvents:
    """One event a block."""
    runs = [events_pb2.BlocksStored(identities=[identity]) for identity in identities]
    events = [events_pb2.KvEvent(stored=run) for run in runs]
    return events_pb2.KvEvents(incarnation=incarnation, first_seq=first_seq, events=events)


def test_what_comes_early_waits_and_what_comes_twice_is_dropped() -> None:
    it = Follower(1)
    it.note_events(batch(2, b"b", b"c"), now=0.0)
    assert it.blocks == set() and it.is_behind
    it.note_events(batch(1, b"a"), now=0.1)
    it.note_events(batch(1, b"a", b"b"), now=0.1)
    assert it.blocks == {b"a", b"b", b"c"} and it.seq == 3 and not it.is_behind
    assert not it.needs_index(now=100.0)


def test_a_gap_is_waited_for_and_then_asks_for_the_index() -> None:
    it = Follower(1)
    it.note_events(batch(3, b"c"), now=10.0)
    assert not it.needs_index(now=10.0 + PATIENCE_SECONDS / 2)
    assert it.needs_index(now=10.0 + PATIENCE_SECONDS)
    assert it.adopt(1, 2, {b"a"}, now=11.0)
    assert it.blocks == {b"a", b"c"} and it.seq == 3 and not it.needs_index(now=100.0)


def test_progress_renews_the_patience() -> None:
    it = Follower(1)
    it.note_heartbeat(1, 10, now=0.0)
    it.note_events(batch(1, b"a"), now=PATIENCE_SECONDS * 0.9)
    assert not it.needs_index(now=PATIENCE_SECONDS)
    assert it.needs_index(now=PATIENCE_SECONDS * 2)


def test_a_heartbeat_shows_a_lost_last_event() -> None:
    it = Follower(1)
    it.note_events(batch(1, b"a"), now=0.0)
    it.note_heartbeat(1, 2, now=0.0)
    assert it.needs_index(now=PATIENCE_SECONDS)
    assert not it.adopt(1, 1, {b"old"}, now=1.0), "it knows that much itself"
    assert it.adopt(1, 2, set(), now=1.0) and it.blocks == set()


def test_an_index_of_a_life_before_is_refused() -> None:
    it = Follower(2)
    assert not it.adopt(1, 50, {b"a"}, now=0.0) and it.blocks == set()


def test_cleared_and_removed_are_applied() -> None:
    it = Follower(1)
    it.note_events(batch(1, b"a", b"b"), now=0.0)
    removed = events_pb2.KvEvent(removed=events_pb2.BlocksRemoved(identities=[b"a"]))
    it.note_events(events_pb2.KvEvents(incarnation=1, first_seq=3, events=[removed]), now=0.0)
    assert it.blocks == {b"b"}
    cleared = events_pb2.KvEvent(cleared=True)
    it.note_events(events_pb2.KvEvents(incarnation=1, first_seq=4, events=[cleared]), now=0.0)
    assert it.blocks == set() and it.seq == 4


def test_what_waits_is_bounded() -> None:
    it = Follower(1)
    many = [bytes([number % 256]) for number in range(follower.PENDING_EVENTS_MAX + 1)]
    it.note_events(batch(2, *many), now=0.0)
    assert it.needs_index(now=PATIENCE_SECONDS)
    it.note_events(batch(1, b"first"), now=1.0)
    assert it.seq == 1, "what waited was dropped"
    assert it.adopt(1, len(many) + 1, set(many), now=2.0) and not it.is_behind
