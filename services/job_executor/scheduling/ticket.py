"""One task that asks for a place on a task executor."""

import math
from dataclasses import dataclass
from typing import Protocol

from deepflow.access.names import WEIGHT_DEFAULT, WEIGHT_MAX, WEIGHT_MIN
from deepflow.v1 import types_pb2 as types

# Smaller runs first within its tenant; then its class, its priority and its arrival.
Rank = tuple[int, int]

_CLASS_ORDER = {types.SERVICE_CLASS_BATCH: 1}  # all else is interactive


class Guest(Protocol):
    """Who holds a ticket."""

    @property
    def num_new_tokens(self) -> int:
        """What its task has produced so far."""

    def called(self) -> None:
        """It is its turn: submit the task now. Never raises."""


@dataclass(slots=True, eq=False)
class Ticket:
    """Waits, then runs, then is over; who waits for it may go in between."""

    guest: Guest
    model: str
    tenant: str
    weight: float = WEIGHT_DEFAULT
    rank: Rank = (0, 0)
    joined_at: float = 0.0  # monotonic
    waited_seconds: float | None = None  # None where it was called at once
    is_waiting: bool = False
    is_running: bool = False
    num_charged: int = 0  # of its new tokens, those that its tenant was charged for


def weight_of(told: float) -> float:
    """What is missing or no weight at all is the usual one; what is out of bounds, the bound."""
    if not math.isfinite(told) or told <= 0:
        return WEIGHT_DEFAULT
    return min(max(told, WEIGHT_MIN), WEIGHT_MAX)


def rank_of(context: types.WorkContext) -> Rank:
    return _CLASS_ORDER.get(context.service_class, 0), context.priority
