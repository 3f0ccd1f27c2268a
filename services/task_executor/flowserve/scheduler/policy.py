"""Who goes first: one small class behind one method, chosen by name."""

from typing import Protocol

from services.task_executor.flowserve.scheduler.sequence import Rank, Sequence


class Policy(Protocol):
    def rank(self, sequence: Sequence) -> Rank:
        """Least goes first, greatest is preempted first. Asked once; no two may be equal."""


class Fcfs:
    """First come, first served, smaller priorities before that."""

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.priority, sequence.arrival)


POLICIES: dict[str, type[Policy]] = {"fcfs": Fcfs}


def make_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}, but must be one of: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
