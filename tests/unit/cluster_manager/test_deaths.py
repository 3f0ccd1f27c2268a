"""Who is given up, and who is only not heard."""

from dataclasses import replace

import pytest

from services.cluster_manager.reconcile.deaths import find_dead
from services.cluster_manager.reconcile.state import ClusterState, Hearing, Pod
from tests.unit.cluster_manager.world import TE, task_executor

NOW = 100.0


def state(heard_at: float, hearing: Hearing | None) -> ClusterState:
    member = replace(task_executor("te-0"), heard_at=heard_at, pid=7, started_unix_ms=1000)
    return ClusterState(members={"te-0": member}, hearing=hearing, member_timeout=5.0)


@pytest.mark.parametrize(
    ("heard_at", "hearing", "is_dead"),
    [
        (94.0, Hearing(0.0, 100.0), True),  # silent for 6 s while others were heard
        (96.0, Hearing(0.0, 100.0), False),  # not for long enough
        (10.0, Hearing(0.0, 50.0), False),  # everybody is silent: NATS is away
        (10.0, Hearing(99.0, 100.0), False),  # NATS is back for a second: others come first
        (10.0, Hearing(94.0, 100.0), False),  # for 6 s: whoever connects again takes its time
        (10.0, Hearing(89.0, 100.0), True),  # for 11 s, and this one is not
        (10.0, None, False),  # nobody was ever heard
    ],
)
def test_silence_counts_only_while_others_are_heard(
    heard_at: float, hearing: Hearing | None, is_dead: bool
) -> None:
    assert bool(find_dead(state(heard_at, hearing), NOW)) is is_dead


def test_a_stalled_manager_does_not_blame_the_members() -> None:
    """After a pause of this process the clock jumps before the queued heartbeats are read."""
    before = state(50.0, Hearing(0.0, 50.0))
    assert find_dead(before, NOW) == []


@pytest.mark.parametrize(
    ("pid", "since", "is_dead"),
    [
        (7, 900, False),  # the same process
        (7, 2000, False),  # the same process, told anew
        (8, 2000, True),  # another one, started later
        (6, 900, False),  # old news: the member is the later process
        (0, 2000, True),  # ended
        (0, 900, False),  # old news of the life before
    ],
)
def test_the_drivers_word_counts_when_it_is_newer(pid: int, since: int, is_dead: bool) -> None:
    pod = Pod("te-0", TE, pid, pid > 0, since, seen_at=0.0)
    found = find_dead(replace(state(NOW, None), pods={"te-0": pod}), NOW)
    assert bool(found) is is_dead
    assert all(action.is_certain for action in found)


def test_a_pod_that_is_gone_takes_its_member_along() -> None:
    gone = replace(state(NOW, None), pods={}, gone_pods={"te-0": 2000})
    assert [action.reason for action in find_dead(gone, NOW)] == ["its process is gone"]
    assert find_dead(replace(gone, gone_pods={"te-0": 900}), NOW) == []


def test_a_stack_that_was_killed_leaves_no_ghosts() -> None:
    remembered = state(NOW, None)
    ghost = replace(remembered.members["te-0"], is_confirmed=False)
    members = {"te-0": ghost, "elsewhere": replace(ghost, id="elsewhere")}
    seen = replace(remembered, members=members, pods={})
    assert [(action.member, action.is_certain) for action in find_dead(seen, NOW)] == [
        ("te-0", False)
    ]
    assert find_dead(replace(seen, pods=None), NOW) == []
    heard = replace(seen, members={"te-0": replace(ghost, is_confirmed=True)})
    assert find_dead(heard, NOW) == []
