"""Chunks sized so that answers under way keep flowing while new prompts are read.

Without prefills beside it a step of the decoding sequences takes a known time. A step with a chunk
may take as long as the target for the time between tokens, or half as long again as without one
where there is no target; twice that at most, where a prompt would miss its first token otherwise.
"""

from services.task_executor.flowserve.scheduler.policies.base import PrefillDemand
from services.task_executor.flowserve.scheduler.policies.priority import Priority
from services.task_executor.flowserve.scheduler.policies.step_cost import LOOK_TOKENS, StepCost

CHUNK_MIN = 16  # so that every prompt gets on
CHUNK_FIRST = 64  # before anything is known of the device
STRETCH = 1.5  # of a step without prefills, where no target is set
STRETCH_MAX = 4 / 3  # of that again, for a prompt that is late
TTFT_SECONDS_USUAL = 10.0


class Slo(Priority):
    """Targets of 0 are none."""

    def __init__(self, tpot_seconds: float = 0.0, ttft_seconds: float = 0.0) -> None:
        self._tpot_seconds = tpot_seconds
        self._ttft_seconds = ttft_seconds or TTFT_SECONDS_USUAL
        self._cost = StepCost()

    def observe(self, decoding: int, prefilled: int, seconds: float) -> None:
        self._cost.observe(decoding, prefilled, seconds)

    def prefill_tokens(self, demand: PrefillDemand) -> int:
        if not demand.decoding:
            return demand.room  # nobody is held up
        if self._cost.wants_look(demand.decoding):
            return min(demand.room, LOOK_TOKENS)
        wanted = self._fitting(demand)
        return min(demand.room, max(CHUNK_MIN, wanted))

    def _fitting(self, demand: PrefillDemand) -> int:
        alone = self._cost.decode_seconds(demand.decoding)
        target = self._tpot_seconds or STRETCH * (alone or 0.0)
        calm = self._cost.prefill_within(target, demand.decoding)
        most = self._cost.prefill_within(STRETCH_MAX * target, demand.decoding)
        if calm is None or most is None:
            return CHUNK_FIRST
        return max(calm, min(most, self._tokens_to_be_in_time(demand, target)))

    def _tokens_to_be_in_time(self, demand: PrefillDemand, step_seconds: float) -> int:
        """In each step from now on."""
        left = self._ttft_seconds - demand.waited_seconds
        if left <= step_seconds:
            return demand.remaining
        return int(demand.remaining * step_seconds / left) + 1
