"""Copies stand still when none of them ends for a while, and not before."""

from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.flowserve.scheduler.copy_watch import PATIENCE_SECONDS, CopyWatch


def test_nothing_stands_still_where_nothing_moves() -> None:
    watch = CopyWatch()
    watch.look(0.0, num_copying=0)
    watch.look(1000.0, num_copying=0)
    assert not watch.is_stalled and watch.stalls_at is None


def test_one_that_ends_gives_the_others_time() -> None:
    watch = CopyWatch()
    watch.look(10.0, num_copying=2)
    watch.ended(11.0)
    assert watch.stalls_at == 11.0 + PATIENCE_SECONDS
    watch.look(10.0 + PATIENCE_SECONDS, num_copying=1)
    assert not watch.is_stalled
    watch.look(11.0 + PATIENCE_SECONDS, num_copying=1)
    assert watch.is_stalled and watch.stalls_at is None
    watch.ended(20.0)
    assert not watch.is_stalled


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 2), st.booleans()), max_size=40))
def test_it_is_stalled_after_a_silence_and_only_then(
    moments: list[tuple[float, int, bool]],
) -> None:
    watch, now, quiet_since = CopyWatch(), 0.0, None
    for passed, num_copying, has_ended in moments:
        now += passed
        if has_ended:
            watch.ended(now)
            quiet_since = now
        watch.look(now, num_copying=num_copying)
        if not num_copying:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        expected = quiet_since is not None and now >= quiet_since + PATIENCE_SECONDS
        assert watch.is_stalled == expected
        assert watch.stalls_at is None or watch.stalls_at > now
