"""Smaller priorities first, and first come, first served among equals."""

from services.task_executor.flowserve.scheduler.policies.fcfs import Fcfs
from services.task_executor.flowserve.scheduler.sequence import Rank, Sequence


class Priority(Fcfs):
    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.priority, sequence.arrival)
