"""Who asked lately, and is kept a row for."""

from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.scheduling.recent_tenants import RecentTenants


def test_who_asked_long_ago_is_forgotten() -> None:
    recent = RecentTenants(seconds=10)
    recent.note("a", 1.0, 0.0)
    recent.note("b", 2.0, 5.0)
    assert recent.weights(9.0) == {"a": 1.0, "b": 2.0}
    recent.note("a", 3.0, 9.0)
    assert recent.weights(15.0) == {"a": 3.0}
    assert recent.weights(19.0) == {}


@given(
    asks=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 5)), max_size=60),
    most=st.integers(1, 8),
)
def test_it_holds_the_latest_and_never_too_many(asks: list[tuple[int, float]], most: int) -> None:
    recent, now = RecentTenants(seconds=20, most=most), 0.0
    last: dict[str, float] = {}
    for number, pause in asks:
        now += pause
        last[str(number)] = now
        recent.note(str(number), 1.0, now)
        known = recent.weights(now)
        assert len(known) <= most and str(number) in known
        assert all(now - last[tenant] < 20 for tenant in known)
        oldest = min((last[tenant] for tenant in known), default=now)
        left_out = {it for it, asked in last.items() if asked > oldest and now - asked < 20}
        assert left_out <= known.keys()
