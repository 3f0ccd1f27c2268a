"""Where tasks wait for their tenant's turn while the task executors of their model are full."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from deepflow import clock
from deepflow.errors import RateLimited, Unavailable
from services.job_executor import metrics
from services.job_executor.scheduling.capacity import Rows
from services.job_executor.scheduling.fair_queue import FairQueue
from services.job_executor.scheduling.recent_tenants import RecentTenants
from services.job_executor.scheduling.ticket import Ticket

RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 1.0, 30.0
# In one turn of the loop; placing a task takes a fraction of a millisecond.
CALLS_PER_TURN = 16


class Places(Protocol):
    """The task executors."""

    def has_room(self, model: str) -> bool:
        """Whether any of a model's can use one more task now."""

    def rows(self, model: str) -> Rows:
        """Of all of a model's together."""


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """A job is let in whole or not at all, so one job's tasks may be beyond them."""

    tasks_max: int
    tasks_per_tenant_max: int
    seconds_max: float


class WaitingRoom:
    """Calls tickets as room appears; where there is room at once, nobody waits."""

    def __init__(self, places: Places, limits: RoomLimits) -> None:
        self.limits = limits
        self._places = places
        self._queues: dict[str, FairQueue] = {}  # by model; an idle one is dropped
        self._recent: dict[str, RecentTenants] = {}  # by model
        self._arriving: Counter[str] = Counter()  # jobs that are being prepared, by tenant
        self._is_call_due = False
        self._last_wait = 0.0  # of the ticket that was called last, in seconds

    @property
    def num_waiting(self) -> int:
        return sum(queue.num_waiting for queue in self._queues.values())

    @property
    def retry_seconds(self) -> float:
        """How long it lasts now until a task gets its turn."""
        return min(max(self._last_wait, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)

    # ── a job comes ──────────────────────────────────────────────────────────────────────────

    def check(self, tenant: str, *, is_new: bool = False) -> None:
        """Raises RateLimited where the tenant's share is full, Unavailable where all is.

        Asked when a job comes, which counts those that are being prepared too, and once more when
        it is prepared.
        """
        own = sum(queue.num_waiting_of(tenant) for queue in self._queues.values())
        everybody = self.num_waiting
        if is_new:
            own += self._arriving.get(tenant, 0)
            everybody += self._arriving.total()
        if own >= self.limits.tasks_per_tenant_max:
            raise RateLimited(
                f"{own} tasks of this tenant wait already; try again when some have ended",
                reason="tenant_queue_full",
                retry_after_seconds=self.retry_seconds,
            )
        if everybody >= self.limits.tasks_max:
            raise Unavailable(
                f"{everybody} tasks wait already; try again in a moment",
                reason="queue_full",
                retry_after_seconds=self.retry_seconds,
            )

    def arriving(self, tenant: str) -> "Arrival":
        """A job that is being prepared: it counts until its arrival ends."""
        return Arrival(self._arriving, tenant)

    def waited_too_long(self) -> Unavailable:
        return Unavailable(
            f"no task executor had room within {self.limits.seconds_max:g} s; try again later",
            reason="queue_timeout",
            retry_after_seconds=self.retry_seconds,
        )

    # ── its tasks ────────────────────────────────────────────────────────────────────────────

    def ask(self, ticket: Ticket) -> None:
        """Calls the guest as soon as it is its turn: at once, where nobody waits and room is."""
        queue = self._queues.setdefault(ticket.model, FairQueue())
        ticket.joined_at = clock.monotonic()
        recent = self._recent.setdefault(ticket.model, RecentTenants())
        recent.note(ticket.tenant, ticket.weight, ticket.joined_at)
        if not queue.num_waiting and self._may_run(queue, ticket):
            queue.join(ticket)
            self._call(queue, ticket)
            return
        if not queue.num_waiting_of(ticket.tenant):
            _charge_all(queue)  # it starts where the others stand now
        queue.join(ticket)
        self.wake()

    def charge_input(self, ticket: Ticket, tokens: int) -> None:
        """Of its prompt, what has to be computed where it was placed."""
        if queue := self._queues.get(ticket.model):
            queue.charge(ticket, input_tokens=tokens)

    def leave(self, ticket: Ticket) -> None:
        """Its task is over, or nobody wants it any more; a second time does nothing."""
        queue = self._queues.get(ticket.model)
        if queue is None:
            return
        queue.charge(ticket, output_tokens=ticket.guest.num_new_tokens)
        queue.leave(ticket)
        if queue.is_idle:
            del self._queues[ticket.model]

    def wake(self) -> None:
        """Room may have appeared: whoever is next is called before long."""
        if not self._is_call_due and any(queue.num_waiting for queue in self._queues.values()):
            self._is_call_due = True
            asyncio.get_running_loop().call_soon(self._call_all)

    def _may_run(self, queue: FairQueue, ticket: Ticket) -> bool:
        """The last free rows are for tenants that have less than their share."""
        if not self._places.has_room(ticket.model):
            return False
        rows = self._places.rows(ticket.model)
        if not rows.are_scarce:
            return True
        weights = self._weights_of(ticket.model)
        if len(weights) < 2:
            return True  # a lone tenant has all
        return not queue.has_share(ticket, rows.total / sum(weights.values()))

    def _weights_of(self, model: str) -> dict[str, float]:
        """Of the tenants among whom its rows are shared."""
        recent = self._recent.get(model)
        return recent.weights(clock.monotonic()) if recent is not None else {}

    def _next(self, model: str, queue: FairQueue) -> Ticket | None:
        ticket = queue.first()
        if ticket is None or not self._places.has_room(model):
            return None
        if self._may_run(queue, ticket):
            return ticket
        weights = self._weights_of(model)
        return queue.first_without_share(self._places.rows(model).total / sum(weights.values()))

    def _call_all(self) -> None:
        self._is_call_due = False
        for model, queue in list(self._queues.items()):
            if queue.num_waiting and self._places.has_room(model):
                _charge_all(queue)
                self._call_some(model, queue)

    def _call_some(self, model: str, queue: FairQueue) -> None:
        """A few, lest streams stand still where room for many appears."""
        for _ in range(CALLS_PER_TURN):
            if (ticket := self._next(model, queue)) is None:
                return
            self._last_wait = ticket.waited_seconds = clock.monotonic() - ticket.joined_at
            metrics.QUEUE_SECONDS.observe(self._last_wait)
            self._call(queue, ticket)
        self.wake()

    def _call(self, queue: FairQueue, ticket: Ticket) -> None:
        queue.take(ticket)
        ticket.guest.called()


class Arrival:
    """One job of a tenant on its way to the room."""

    def __init__(self, counts: Counter[str], tenant: str) -> None:
        self._counts, self._tenant = counts, tenant
        self._is_over = False
        counts[tenant] += 1

    def end(self) -> None:
        """Its tasks ask for places now, or it ended; a second time does nothing."""
        if self._is_over:
            return
        self._is_over = True
        self._counts[self._tenant] -= 1
        if not self._counts[self._tenant]:
            del self._counts[self._tenant]


def _charge_all(queue: FairQueue) -> None:
    """Answers in the making are counted when somebody has to choose, not token by token."""
    for ticket in queue.running:
        queue.charge(ticket, output_tokens=ticket.guest.num_new_tokens)
