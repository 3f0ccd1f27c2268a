"""Whose task runs next where all tenants want the same task executors: virtual token counters.

Every tenant has a counter of what it was served: tokens of prompts that had to be computed and
tokens of answers, divided by its weight. The waiting tenant with the smallest counter is next. Who
comes back after a pause is lifted to the smallest counter among those that wait: nobody saves up
for later what he did not use. Pure: no clock, no I/O.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from deepflow.access.names import WEIGHT_DEFAULT
from services.job_executor.scheduling.ticket import Rank, Ticket

# A token of an answer is a step of its own for its row; tokens of a prompt share theirs.
INPUT_COST, OUTPUT_COST = 1.0, 2.0
# Tenants that have nothing here and are known for what they were served before.
REMEMBERED_MAX = 1024
# Tickets that left while they waited and are still on their heap, beside as many as wait.
LEFTOVERS_MAX = 32


@dataclass(slots=True, eq=False)
class _Line:
    """One tenant."""

    tenant: str
    counter: float = 0.0
    weight: float = WEIGHT_DEFAULT
    turn: int = 0  # when it was last served: among equals, who was served longest ago is next
    tickets: list[tuple[Rank, int, Ticket]] = field(default_factory=list)  # a heap
    num_waiting: int = 0
    num_running: int = 0
    is_listed: bool = False

    @property
    def is_idle(self) -> bool:
        return not self.num_waiting and not self.num_running

    @property
    def entry(self) -> tuple[float, int, str, _Line]:
        return self.counter, self.turn, self.tenant, self

    def head(self) -> Ticket:
        while not self.tickets[0][2].is_waiting:
            heapq.heappop(self.tickets)
        return self.tickets[0][2]

    def drop_leftovers(self) -> None:
        if len(self.tickets) > 2 * self.num_waiting + LEFTOVERS_MAX:
            self.tickets = [it for it in self.tickets if it[2].is_waiting]
            heapq.heapify(self.tickets)


class FairQueue:
    """The tickets of one model: those that wait and those whose tasks run."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        # A heap of the lines in which somebody waits. Counters only rise, so an entry may be too
        # low: it is put right when it comes to the top.
        self._order: list[tuple[float, int, str, _Line]] = []
        self._last: _Line | None = None  # the line that was served last
        self._arrivals = itertools.count()
        self._turns = itertools.count(1)
        self._sweep_at = REMEMBERED_MAX
        self.num_waiting = 0
        self.running: set[Ticket] = set()

    @property
    def is_idle(self) -> bool:
        return not self.num_waiting and not self.running

    def num_waiting_of(self, tenant: str) -> int:
        line = self._lines.get(tenant)
        return line.num_waiting if line is not None else 0

    def counter_of(self, tenant: str) -> float:
        """What the tenant was served by its weight, and lifts; 0 where nothing is known."""
        line = self._lines.get(tenant)
        return line.counter if line is not None else 0.0

    def has_share(self, ticket: Ticket, rows_per_weight: float) -> bool:
        """Whether its tenant's tasks take as many rows as are its part."""
        line = self._lines.get(ticket.tenant)
        return line is not None and line.num_running >= rows_per_weight * line.weight

    def join(self, ticket: Ticket) -> None:
        line = self._line(ticket.tenant)
        line.weight = ticket.weight
        if not line.num_waiting:
            line.counter = max(line.counter, self._level())
        ticket.is_waiting = True
        heapq.heappush(line.tickets, (ticket.rank, next(self._arrivals), ticket))
        line.num_waiting += 1
        self.num_waiting += 1
        if not line.is_listed:
            line.is_listed = True
            heapq.heappush(self._order, line.entry)

    def first(self) -> Ticket | None:
        """Whose turn it is; it stays in the queue."""
        line = self._first_line()
        return line.head() if line is not None else None

    def first_without_share(self, rows_per_weight: float) -> Ticket | None:
        """Whose turn it is among those whose tenants have less than their part of the rows."""
        waiting = [
            line.entry
            for line in self._lines.values()
            if line.num_waiting and line.num_running < rows_per_weight * line.weight
        ]
        return min(waiting)[3].head() if waiting else None

    def take(self, ticket: Ticket) -> None:
        """It runs now; its input is charged as soon as it is known."""
        line = self._stop_waiting(ticket)
        line.turn = next(self._turns)
        line.num_running += 1
        ticket.is_running = True
        self.running.add(ticket)
        self._last = line

    def charge(self, ticket: Ticket, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """`output_tokens` are all that its task has produced; those charged before are known."""
        new_tokens = output_tokens - ticket.num_charged if output_tokens else 0
        ticket.num_charged += new_tokens
        cost = INPUT_COST * input_tokens + OUTPUT_COST * new_tokens
        if cost and ticket.is_running:
            self._lines[ticket.tenant].counter += cost / ticket.weight

    def leave(self, ticket: Ticket) -> None:
        """Over, or not wanted any more; a second time does nothing."""
        if ticket.is_waiting:
            self._stop_waiting(ticket).drop_leftovers()
        elif ticket.is_running:
            ticket.is_running = False
            self.running.discard(ticket)
            self._lines[ticket.tenant].num_running -= 1
        if self.is_idle:
            # Nobody is owed anything any more: all had what they asked for.
            self._lines.clear()
            self._order.clear()
            self._last = None

    def _line(self, tenant: str) -> _Line:
        line = self._lines.get(tenant)
        if line is None:
            self._forget_some()
            line = self._lines[tenant] = _Line(tenant)
        return line

    def _level(self) -> float:
        """Where a newcomer starts: no better and no worse than the one who is next."""
        line = self._first_line() or self._last
        return line.counter if line is not None else 0.0

    def _first_line(self) -> _Line | None:
        order = self._order
        while order:
            line = order[0][3]
            if not line.num_waiting:
                heapq.heappop(order)
                line.is_listed = False
            elif order[0][:2] != (line.counter, line.turn):
                heapq.heapreplace(order, line.entry)
            else:
                return line
        return None

    def _stop_waiting(self, ticket: Ticket) -> _Line:
        line = self._lines[ticket.tenant]
        ticket.is_waiting = False
        line.num_waiting -= 1
        self.num_waiting -= 1
        if not line.num_waiting:
            line.tickets.clear()
        return line

    def _forget_some(self) -> None:
        """Those whose counters are the lowest lose the least: a lift makes up for it."""
        if len(self._lines) < self._sweep_at:
            return
        idle = sorted((it for it in self._lines.values() if it.is_idle), key=lambda it: it.counter)
        for line in idle[: max(0, len(idle) - REMEMBERED_MAX // 2)]:
            del self._lines[line.tenant]
        self._sweep_at = len(self._lines) + REMEMBERED_MAX // 2
        self._order = [it for it in self._order if it[3].num_waiting]
        for line in self._lines.values():
            line.is_listed = line.num_waiting > 0
        heapq.heapify(self._order)
