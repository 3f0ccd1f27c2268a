"""The fair queue as a pure core: who is next, whatever came before."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.job_executor.scheduling import fair_queue as module
from services.job_executor.scheduling.fair_queue import INPUT_COST, OUTPUT_COST, FairQueue
from services.job_executor.scheduling.ticket import Ticket
from tests.unit.job_executor.fair_simulation import Executor, ticket, work_of

INPUT_MAX, OUTPUT_MAX = 40, 12
SIZES = st.tuples(st.integers(0, INPUT_MAX), st.integers(1, OUTPUT_MAX))
ROWS = st.integers(1, 8)
SIMULATED = settings(max_examples=40, deadline=None)


def most_at_once(rows: int) -> float:
    """What one tenant can be served before its counter tells: all rows, filled by it alone."""
    return rows * (INPUT_COST * INPUT_MAX + OUTPUT_COST * OUTPUT_MAX)


def backlog(
    draw: Callable[..., Any], executor: Executor, tenants: dict[str, float], tasks: int
) -> None:
    """So much work of each tenant that it waits all the time."""
    for tenant, weight in tenants.items():
        for _ in range(tasks):
            inputs, outputs = draw(SIZES)
            executor.submit(
                ticket(tenant, weight=weight, input_tokens=inputs, output_tokens=outputs)
            )


@SIMULATED
@given(st.data(), ROWS)
def test_backlogged_tenants_are_served_alike(data: st.DataObject, rows: int) -> None:
    executor = Executor(rows)
    backlog(data.draw, executor, {"a": 1.0, "b": 1.0}, tasks=40)
    executor.fill()
    while all(executor.queue.num_waiting_of(name) for name in "ab"):
        assert abs(executor.served["a"] - executor.served["b"]) <= 2 * most_at_once(rows)
        executor.step()


@SIMULATED
@given(st.integers(1, 4), ROWS)
def test_weights_are_proportions(weight: int, rows: int) -> None:
    executor, cost = Executor(rows), 5 * (INPUT_COST + OUTPUT_COST)
    for _ in range(150):
        executor.submit(ticket("light", input_tokens=5, output_tokens=5))
        executor.submit(ticket("heavy", weight=weight, input_tokens=5, output_tokens=5))
    executor.fill()
    while all(executor.queue.num_waiting_of(name) for name in ("light", "heavy")):
        share = executor.served["heavy"] / weight
        assert abs(share - executor.served["light"]) <= 2 * rows * cost
        executor.step()


@SIMULATED
@given(st.data(), ROWS, st.integers(1, 25))
def test_no_row_is_free_while_somebody_waits(data: st.DataObject, rows: int, tasks: int) -> None:
    executor = Executor(rows)
    backlog(data.draw, executor, {"a": 1.0, "b": 3.0, "c": 0.5}, tasks)
    executor.fill()
    while executor.queue.num_waiting:
        assert len(executor.queue.running) == rows
        executor.step()
    assert len(executor.started) == 3 * tasks


@SIMULATED
@given(ROWS, st.integers(1, 200), st.integers(0, 100))
def test_a_newcomer_is_next_however_long_the_greedy_one_has_worked(
    rows: int, tasks: int, steps: int
) -> None:
    executor = Executor(rows)
    executor.submit(*(ticket("greedy", input_tokens=9, output_tokens=9) for _ in range(tasks)))
    executor.fill()
    for _ in range(steps):
        executor.step()
    newcomer = ticket("small")
    executor.submit(newcomer)
    if executor.queue.num_waiting_of("greedy"):
        waiting = executor.queue.first()
        assert waiting is not None
        executor.queue.take(waiting)
        assert newcomer in (waiting, executor.queue.first()), "at most one goes before"


@SIMULATED
@given(st.integers(1, 50))
def test_a_pause_saves_nothing_up(rounds: int) -> None:
    """Who did not ask for a while is not owed what others got meanwhile."""
    executor = Executor(rows=1)
    executor.submit(ticket("late"), *(ticket("steady", output_tokens=3) for _ in range(500)))
    executor.fill()
    for _ in range(rounds * 3):
        executor.step()
    executor.submit(*(ticket("late", output_tokens=3) for _ in range(400)))
    assert executor.queue.counter_of("late") >= executor.queue.counter_of("steady")
    before = len(executor.started)
    for _ in range(60):
        executor.step()
    turns = [it.tenant for it in executor.started[before:]]
    assert abs(turns.count("late") - turns.count("steady")) <= 1


def test_a_newcomer_starts_where_the_one_that_was_served_last_stands() -> None:
    queue, running, newcomer = FairQueue(), ticket("steady"), ticket("late")
    queue.join(running)
    queue.take(running)
    queue.charge(running, input_tokens=1000)
    queue.join(newcomer)
    assert queue.counter_of("late") == queue.counter_of("steady") > 0


@SIMULATED
@given(st.integers(16, 100), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=5))
def test_tenants_below_their_share_can_take_every_row(rows: int, weights: list[float]) -> None:
    """Backlogged tenants leave none free, whatever their weights."""
    queue = FairQueue()
    for number, weight in enumerate(weights):
        for _ in range(rows):
            queue.join(ticket(str(number), weight=weight))
    for _ in range(rows):
        chosen = queue.first_without_share(rows / sum(weights))
        assert chosen is not None
        queue.take(chosen)
    for it in queue.running:
        part = rows * it.weight / sum(weights)
        own = sum(other.tenant == it.tenant for other in queue.running)
        assert own < part + 1


def test_a_share_is_full_when_its_rows_are_taken() -> None:
    queue, it = FairQueue(), ticket("one")
    queue.join(it)
    assert not queue.has_share(it, 1.0)
    queue.take(it)
    assert queue.has_share(ticket("one"), 1.0)
    assert not queue.has_share(ticket("one"), 1.5)
    assert not queue.has_share(ticket("another"), 1.0)


def test_what_one_was_served_too_much_is_not_forgotten_by_leaving() -> None:
    queue = FairQueue()
    rest, greedy = ticket("rest"), ticket("greedy")
    for it in (rest, greedy):
        queue.join(it)
        queue.take(it)
    queue.join(ticket("rest"))
    queue.charge(greedy, input_tokens=1000)
    queue.leave(greedy)
    back = ticket("greedy")
    queue.join(back)
    assert queue.counter_of("greedy") == 1000 * INPUT_COST
    first = queue.first()
    assert first is not None and first.tenant == "rest"


def test_nobody_is_owed_anything_once_all_is_done() -> None:
    queue = FairQueue()
    it = ticket("a")
    queue.join(it)
    queue.take(it)
    queue.charge(it, input_tokens=50, output_tokens=50)
    queue.leave(it)
    queue.leave(it)
    assert queue.is_idle and queue.counter_of("a") == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=30))
def test_within_a_tenant_class_then_priority_then_arrival(ranks: list[tuple[int, int]]) -> None:
    queue, tickets = FairQueue(), [ticket(rank=rank) for rank in ranks]
    for it in tickets:
        queue.join(it)
    order = []
    while (first := queue.first()) is not None:
        queue.take(first)
        order.append(first)
    assert order == sorted(tickets, key=lambda it: it.rank)  # sorting is stable


def test_answers_are_charged_once_however_often_they_are_looked_at() -> None:
    queue, it = FairQueue(), ticket("a", weight=2.0)
    queue.join(it)
    queue.take(it)
    queue.charge(it, input_tokens=10)
    for produced in (3, 3, 7):
        queue.charge(it, output_tokens=produced)
    assert queue.counter_of("a") == (INPUT_COST * 10 + OUTPUT_COST * 7) / 2.0


def test_tenants_that_left_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_MAX", 8)
    queue = FairQueue()
    stays, waits = ticket("stays"), ticket("waits")
    queue.join(stays)
    queue.take(stays)
    queue.join(waits)
    for number in range(200):
        it = ticket(f"passer-{number}")
        queue.join(it)
        queue.take(it)
        queue.charge(it, input_tokens=number)
        queue.leave(it)
        assert len(queue._lines) <= 8 + 8 and len(queue._order) <= 8 + 8
    assert queue.first() is waits


def test_tickets_that_left_while_they_waited_do_not_pile_up() -> None:
    queue, last = FairQueue(), ticket(rank=(1, 0))
    queue.join(last)
    for _ in range(500):
        it = ticket(rank=(1, 1))  # behind the one that stays, so that nobody comes across them
        queue.join(it)
        queue.leave(it)
    assert len(queue._lines["t"].tickets) <= 2 + module.LEFTOVERS_MAX + 1
    assert queue.first() is last and queue.num_waiting == 1


class AnyHistory(RuleBasedStateMachine):
    """Joins, turns, charges and departures in any order, beside a model that is plainly right."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.levels: dict[str, float] = {}

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(0, 2))
    def join(self, tenant: str, priority: int) -> None:
        it = ticket(tenant, rank=(0, priority))
        self.queue.join(it)
        self.waiting.append(it)

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        first = self.queue.first()
        assert first in self.waiting
        least = min(self.queue.counter_of(it.tenant) for it in self.waiting)
        assert self.queue.counter_of(first.tenant) == least
        assert first.rank == min(it.rank for it in self.waiting if it.tenant == first.tenant)
        self.queue.take(first)
        self.waiting.remove(first)
        self.running.append(first)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(0, 50))
    def produce(self, data: st.DataObject, tokens: int) -> None:
        it = data.draw(st.sampled_from(self.running))
        work_of(it).num_new_tokens += tokens
        self.queue.charge(it, output_tokens=work_of(it).num_new_tokens)

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        it = data.draw(st.sampled_from(self.waiting + self.running))
        self.queue.leave(it)
        (self.waiting if it in self.waiting else self.running).remove(it)

    @invariant()
    def counts_agree(self) -> None:
        queue = self.queue
        assert queue.num_waiting == len(self.waiting)
        assert queue.running == set(self.running)
        assert (queue.first() is None) == (not self.waiting)
        for tenant in "abc":
            own = sum(it.tenant == tenant for it in self.waiting)
            assert queue.num_waiting_of(tenant) == own
        assert queue.is_idle == (not self.waiting and not self.running)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
