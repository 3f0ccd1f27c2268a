"""A task executor of so many rows, and tenants that give it work through a fair queue."""

from collections import defaultdict
from dataclasses import dataclass, field

from services.job_executor.scheduling.fair_queue import INPUT_COST, OUTPUT_COST, FairQueue
from services.job_executor.scheduling.ticket import Rank, Ticket


@dataclass
class Work:
    """The task behind a ticket."""

    input_tokens: int
    output_tokens: int
    num_new_tokens: int = 0

    def called(self) -> None: ...


def ticket(
    tenant: str = "t",
    *,
    weight: float = 1.0,
    rank: Rank = (0, 0),
    input_tokens: int = 1,
    output_tokens: int = 1,
) -> Ticket:
    return Ticket(Work(input_tokens, output_tokens), "m", tenant, weight=weight, rank=rank)


def work_of(ticket: Ticket) -> Work:
    assert isinstance(ticket.guest, Work)
    return ticket.guest


@dataclass
class Executor:
    """Each step gives every task that runs one token, then takes what is next into free rows."""

    rows: int
    queue: FairQueue = field(default_factory=FairQueue)
    served: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # cost by tenant
    started: list[Ticket] = field(default_factory=list)

    def submit(self, *tickets: Ticket) -> None:
        for it in tickets:
            self.queue.join(it)

    def step(self) -> None:
        for it in list(self.queue.running):
            work = work_of(it)
            work.num_new_tokens += 1
            self.served[it.tenant] += OUTPUT_COST
            self.queue.charge(it, output_tokens=work.num_new_tokens)
            if work.num_new_tokens >= work.output_tokens:
                self.queue.leave(it)
        self.fill()

    def fill(self) -> None:
        while len(self.queue.running) < self.rows and (it := self.queue.first()) is not None:
            self.queue.take(it)
            self.queue.charge(it, input_tokens=work_of(it).input_tokens)
            self.served[it.tenant] += INPUT_COST * work_of(it).input_tokens
            self.started.append(it)
