"""First come, first served; prefills take whatever room there is."""

from services.task_executor.flowserve.scheduler.policies.base import PrefillDemand
from services.task_executor.flowserve.scheduler.sequence import Rank, Sequence


class Fcfs:
    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.arrival,)

    def prefill_tokens(self, demand: PrefillDemand) -> int:
        return demand.room

    def observe(self, decoding: int, prefilled: int, seconds: float) -> None:
        """Nothing here depends on time."""
