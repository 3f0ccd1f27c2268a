"""How much two ways differ that were measured in turn: the median of their ratios, and how sure.

Each round measures both ways in neighbouring moments, so that what else the machine does meets
both. No assumption about how times are distributed is made: the interval is one of order
statistics, which holds the true median with a probability that counting alone gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of one way's time to the other's."""

    middle: float
    low: float
    high: float

    @property
    def inverse(self) -> "Ratio":
        return Ratio(1 / self.middle, 1 / self.high, 1 / self.low)


def ratio_of(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """Of times that were measured in pairs."""
    ratios = sorted(a / b for a, b in zip(own, other, strict=True))
    rank = rank_of(len(ratios))
    if rank is None:
        return Ratio(median(ratios), 0.0, float("inf"))
    return Ratio(median(ratios), ratios[rank], ratios[-1 - rank])


def rank_of(count: int) -> int | None:
    """How many values at either end of so many the interval leaves out; None where even all of
    them do not make it sure enough."""
    left_out = 0.0  # the probability that the median lies beyond that rank, on one side
    for rank in range(count):
        left_out += comb(count, rank) / 2**count
        if 2 * left_out > 1 - CONFIDENCE:
            return rank - 1 if rank else None
    return None
