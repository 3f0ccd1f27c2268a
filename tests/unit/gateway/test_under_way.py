"""The places of a gateway: bounded, and not all for one tenant."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow import clock
from deepflow.errors import RateLimited, Unavailable
from services.gateway.handlers.under_way import KEPT_SHARE, TURNED_AWAY_SECONDS, UnderWay

MOST = 4 * KEPT_SHARE
KEPT = MOST // KEPT_SHARE


def fill(under_way: UnderWay, tenant: str, wanted: int) -> contextlib.ExitStack:
    """As many as are let in."""
    stay = contextlib.ExitStack()
    for _ in range(wanted):
        with contextlib.suppress(RateLimited, Unavailable):
            stay.enter_context(under_way.one(tenant))
    return stay


def test_a_greedy_tenant_leaves_places_and_is_told_why() -> None:
    under_way = UnderWay(MOST)
    with fill(under_way, "greedy", 2 * MOST):
        assert under_way.count == MOST - KEPT
        with pytest.raises(RateLimited) as refused, under_way.one("greedy"):
            pass
        assert refused.value.reason == "tenant_queue_full"
        assert refused.value.retry_after_seconds > 0
        with fill(under_way, "small", MOST):
            assert under_way.count == MOST
            with pytest.raises(Unavailable, match="too many"), under_way.one("another"):
                pass
    assert under_way.count == 0 and under_way.idle.is_set()


def test_a_tenant_whose_queue_is_full_is_told_so_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    under_way = UnderWay(MOST)
    full = RateLimited("9 wait", reason="tenant_queue_full", retry_after_seconds=7.0)
    with pytest.raises(RateLimited), under_way.one("greedy"):
        raise full
    with pytest.raises(RateLimited, match="9 wait") as told, under_way.one("greedy"):
        raise AssertionError("it was let in")
    assert (told.value.reason, told.value.retry_after_seconds) == ("tenant_queue_full", 7.0)
    with under_way.one("small"):
        assert under_way.count == 1
    now += TURNED_AWAY_SECONDS
    with under_way.one("greedy"):
        assert under_way.of("greedy") == 1


def test_other_limits_turn_nobody_away_the_next_time() -> None:
    under_way = UnderWay(MOST)
    with pytest.raises(RateLimited), under_way.one("busy"):
        raise RateLimited("too many requests in this minute")
    with under_way.one("busy"):
        assert under_way.of("busy") == 1


def test_the_smallest_gateway_has_its_place() -> None:
    under_way = UnderWay(1)
    with under_way.one("anybody"):
        assert under_way.count == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=200))
def test_after_any_history_of_others_a_newcomer_gets_in(history: list[tuple[str, bool]]) -> None:
    """One of the others may be greedy, two, or all of them."""
    under_way = UnderWay(MOST)
    stays: dict[str, list[contextlib.ExitStack]] = {name: [] for name in "abc"}
    for tenant, comes in history:
        if comes:
            stays[tenant].append(fill(under_way, tenant, 3))
        elif stays[tenant]:
            stays[tenant].pop().close()
        assert under_way.count <= MOST
    small = sum(count for count in map(under_way.of, "abc") if count <= KEPT)
    if small == 0:
        with under_way.one("newcomer"):
            assert under_way.of("newcomer") == 1
    for stay in [stay for each in stays.values() for stay in each]:
        stay.close()
    assert under_way.count == 0 and under_way.idle.is_set()
    assert not any(map(under_way.of, "abc"))
