"""What the scheduler asks of a policy. Time is passed in; nothing here looks at a clock."""

from dataclasses import dataclass
from typing import Protocol

from services.task_executor.flowserve.scheduler.sequence import Rank, Sequence


@dataclass(frozen=True, slots=True)
class PrefillDemand:
    """What stands before a step that is being planned."""

    decoding: int  # sequences that run a token each
    room: int  # tokens that the step can take beside those
    remaining: int  # tokens until the best-ranked prefill is done
    waited_seconds: float  # since it arrived


class Policy(Protocol):
    def rank(self, sequence: Sequence) -> Rank:
        """Least goes first, greatest is preempted first. Asked once; no two may be equal."""

    def prefill_tokens(self, demand: PrefillDemand) -> int:
        """How many of the room's tokens the prefills of this step may take; one at least."""

    def observe(self, decoding: int, prefilled: int, seconds: float) -> None:
        """A step of so many decoding sequences and prefill tokens took this long."""
