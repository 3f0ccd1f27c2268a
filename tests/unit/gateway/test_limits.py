"""Limits over several gateways: what all of them spend together, whatever happens in between."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.v1 import access_pb2, store_pb2
from services.gateway.limits.account import Account
from services.gateway.limits.allowance import MINUTE_SECONDS, Allowance
from services.gateway.limits.slots import Slots
from services.gateway.limits.verdict import Verdict

GATEWAYS = 3


class FakeStore:
    """What the store's scripts do, in Python."""

    def __init__(self) -> None:
        self.used: dict[int, int] = {}

    def take(self, take: store_pb2.Take, now: float) -> tuple[store_pb2.Taken, int, float]:
        window = math.floor(now / MINUTE_SECONDS)
        used = self.used.get(window, 0) + take.charge
        left = max(0, take.limit - used)
        granted = min(take.need, left)
        granted += min(take.ahead, (left - granted) // 16)
        self.used[window] = used + granted
        taken = store_pb2.Taken(granted=granted, remaining=max(0, take.limit - used - granted))
        return taken, window, MINUTE_SECONDS - now % MINUTE_SECONDS


def request(
    store: FakeStore, allowance: Allowance, amount: int, now: float, delay: float, *, answers: bool
) -> Verdict:
    """One request, with the question to the store that it may need; `answers`: it arrives."""
    moment = now
    verdict = allowance.verdict(amount, now, None)
    if verdict is Verdict.ASK:
        taken, window, resets_in = store.take(allowance.ask(amount), now + delay / 2)
        if not answers:
            allowance.no_answer()
            return Verdict.REFUSE
        moment = now + delay
        allowance.answer(taken, window, now + resets_in, moment)
        verdict = allowance.verdict(amount, moment, None)
    if verdict is Verdict.ADMIT:
        allowance.spend(amount, moment)
    return verdict


STEPS = st.lists(
    st.tuples(
        st.integers(0, GATEWAYS - 1),
        st.integers(1, 40),
        st.floats(0, 20),
        st.floats(0, 2),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(limit=st.integers(1, 300), steps=STEPS)
def test_together_they_never_spend_more_than_the_limit(
    limit: int, steps: list[tuple[int, int, float, float, bool]]
) -> None:
    store, spent, now = FakeStore(), dict[int, int](), 0.0
    gateways = [Allowance("requests/t", limit) for _ in range(GATEWAYS)]
    for index, amount, pause, delay, answers in steps:
        now += pause
        asks = gateways[index].verdict(amount, now, None) is Verdict.ASK
        verdict = request(store, gateways[index], amount, now, delay, answers=answers)
        now += delay if asks else 0
        if verdict is Verdict.ADMIT:
            window = math.floor(now / MINUTE_SECONDS)
            spent[window] = spent.get(window, 0) + amount
    assert all(total <= limit for total in spent.values())


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(1, 300), steps=STEPS)
def test_one_gateway_alone_can_spend_all_of_it(
    limit: int, steps: list[tuple[int, int, float, float, bool]]
) -> None:
    """Nothing is refused while it fits: a refusal means that the minute has less left."""
    store, spent, now = FakeStore(), dict[int, int](), 0.0
    allowance = Allowance("tokens/t", limit)
    for _, amount, pause, _, _ in steps:
        now += pause
        window = math.floor(now / MINUTE_SECONDS)
        verdict = request(store, allowance, amount, now, 0.0, answers=True)
        if verdict is Verdict.ADMIT:
            spent[window] = spent.get(window, 0) + amount
        else:
            assert spent.get(window, 0) + amount > limit


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(1, 100), amounts=st.lists(st.integers(1, 20), max_size=60))
def test_without_the_store_each_has_its_share(limit: int, amounts: list[int]) -> None:
    share = max(1, limit // GATEWAYS)
    allowance, spent = Allowance("requests/t", limit), 0
    for amount in amounts:
        if allowance.verdict(amount, 1.0, share) is Verdict.ADMIT:
            allowance.spend(amount, 1.0)
            spent += amount
    assert spent <= share
    assert allowance.ask(0).charge == spent  # the store will hear of all of it


@settings(max_examples=200, deadline=None)
@given(requests=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), max_size=30))
def test_what_the_store_hears_is_what_was_used(requests: list[tuple[int, int]]) -> None:
    """Within one minute estimates are corrected both ways; nothing is forgotten or made up."""
    store, allowance, used = FakeStore(), Allowance("tokens/t", 10_000), 0
    for estimate, exact in requests:
        epoch = allowance.spend(estimate, 1.0)
        if exact > estimate:
            allowance.spend(exact - estimate, 1.0)
        else:
            allowance.give_back(estimate - exact, epoch, 1.0)
        used += exact
    taken, window, resets_in = store.take(allowance.ask(0), 1.0)
    allowance.answer(taken, window, 1.0 + resets_in, 1.0)
    lease = allowance.left(1.0, None) - taken.remaining
    assert store.used[0] - lease == used


def test_what_an_earlier_minute_paid_is_not_given_back_to_this_one() -> None:
    allowance = Allowance("tokens/t", 100)
    epoch = allowance.spend(60, 1.0)
    later = 1.0 + MINUTE_SECONDS
    allowance.verdict(1, later, None)
    allowance.give_back(60, epoch, later)
    assert allowance.left(later, None) == 100
    assert allowance.verdict(1, later, None) is Verdict.ASK


def test_small_limits_are_never_leased_ahead() -> None:
    store = FakeStore()
    first, second = Allowance("requests/t", 4), Allowance("requests/t", 4)
    admitted = [
        request(store, gateway, 1, 1.0, 0.0, answers=True)
        for gateway in (first, second, first, second, first)
    ]
    assert admitted == [Verdict.ADMIT] * 4 + [Verdict.REFUSE]


def test_slots_come_back_and_spare_ones_are_not_kept() -> None:
    slots = Slots("t", 2)
    assert slots.verdict(0.0, None) is Verdict.ASK
    assert slots.ask(1).need == 1
    slots.answer(1, until=15.0)
    assert slots.verdict(0.0, None) is Verdict.ADMIT
    slots.take()
    assert slots.verdict(0.0, None) is Verdict.ASK
    slots.release()
    assert slots.has_news
    assert slots.ask(0).need == 0


def test_slots_that_were_not_renewed_are_no_longer_ours() -> None:
    slots = Slots("t", 4)
    slots.answer(2, until=15.0)
    assert slots.verdict(14.9, None) is Verdict.ADMIT
    assert slots.verdict(15.0, None) is Verdict.ASK
    assert slots.verdict(15.0, share=1) is Verdict.ADMIT


def test_a_refusal_says_which_limit_and_when_to_come_back() -> None:
    tenant = access_pb2.Tenant(name="t", requests_per_minute=1, tokens_per_minute=100)
    account = Account(tenant)
    account.requests = _spent("requests/t", 1, 1, now=10.0, ends_at=52.0)
    refusal = account.refusal(5, 10.0, None)
    assert "1 requests per minute" in refusal.message
    assert refusal.retry_after_seconds == 42.0
    headers = dict(account.headers(10.0, None))
    assert headers[b"x-ratelimit-limit-requests"] == b"1"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-reset-requests"] == b"42s"
    assert headers[b"x-ratelimit-limit-tokens"] == b"100"


def test_a_request_larger_than_its_limit_never_asks() -> None:
    account = Account(access_pb2.Tenant(name="t", tokens_per_minute=100))
    assert account.verdict(101, 0.0, None) is Verdict.REFUSE
    assert "101 asked for" in account.refusal(101, 0.0, None).message


def test_changed_limits_hold_from_now_on() -> None:
    account = Account(access_pb2.Tenant(name="t", concurrent_requests=1))
    spending = account.spend(5, 0.0)
    account.adjust(access_pb2.Tenant(name="t", requests_per_minute=9, concurrent_requests=3))
    assert account.slots is not None and account.slots.in_use == 1
    account.settle(spending, 5, 0.0)
    assert account.slots.in_use == 0
    assert account.requests is not None and account.requests.limit == 9


def _spent(name: str, limit: int, amount: int, *, now: float, ends_at: float) -> Allowance:
    allowance = Allowance(name, limit)
    allowance.ask(amount)
    taken = store_pb2.Taken(granted=amount, remaining=limit - amount)
    allowance.answer(taken, 7, ends_at, now)
    allowance.spend(amount, now)
    return allowance
