"""Is it quicker to fetch KV or to compute it again? Fitted to what this device was seen to do.

computing   a price for each token and for each (token, context token) pair, and one a step
fetching    a price for each block by tier, and one for each time that somebody waits for some
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.least_squares import LeastSquares

_WEIGHT = 0.2  # of the newest observation
_WEIGHT_OF_BLOCK = 0.03  # of the newest block's copy
_WEIGHT_ABOVE_LEAST = 0.02  # of one that was held up, when the least time is asked for
# A step with fewer prefill tokens says little about their price.
PREFILL_MIN = 8
SMALL_STEP = 16  # tokens of one that takes the least time
_AT_LEAST = 1.1  # up to here a step is taken to have its least time
_RELENTING = 0.98  # with every time that computing was thought to be quicker
OUTLIER_FACTOR = 8.0  # what took so many times the usual was held up by something else
# So much dearer than it seems is fetching taken to be: where both are as quick, nobody is made
# to wait for a copy that others on the host may hold up.
CAUTION = 1.25
# Units in which the fit is well conditioned.
_TOKENS, _PAIRS = 1e-3, 1e-6
_FACTORS = 3  # a step, its tokens, its pairs

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Sum = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Row = Annotated[list[_Sum], msgspec.Meta(min_length=_FACTORS, max_length=_FACTORS)]


@dataclass(frozen=True, slots=True)
class Computing:
    """A prefix that would be computed in front of the rest of a prompt."""

    start: int  # tokens before it, which need not be computed
    count: int
    rest: int  # tokens behind it, which must be computed in any case
    step_tokens: int  # how many positions a step takes at most


class CostRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that was seen, as plain numbers."""

    dram_seconds: Seconds | None
    disk_seconds: Seconds | None
    wait_seconds: Seconds
    least_seconds: Seconds | None
    free_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    num_steps: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
    products: Annotated[list[Row], msgspec.Meta(min_length=_FACTORS, max_length=_FACTORS)]
    targets: Row


@dataclass(slots=True)
class FetchCosts:
    block_seconds: dict[Tier, float] = field(default_factory=dict)
    wait_seconds: float = 0.0  # from the wish to the answer, beside the prices of the blocks
    least_seconds: float | None = None  # of a step, however little it computes
    _free_tokens: int = 0  # as many were computed within that time
    _steps: LeastSquares = field(default_factory=lambda: LeastSquares(_FACTORS))

    @classmethod
    def from_record(cls, record: CostRecord) -> "FetchCosts":
        costs = cls(
            wait_seconds=record.wait_seconds,
            least_seconds=record.least_seconds,
            _free_tokens=record.free_tokens,
        )
        for tier, seconds in ((Tier.DRAM, record.dram_seconds), (Tier.DISK, record.disk_seconds)):
            if seconds is not None:
                costs.block_seconds[tier] = seconds
        steps = costs._steps
        steps.count, steps.products, steps.targets = (
            record.num_steps,
            record.products,
            record.targets,
        )
        return costs

    def record(self) -> CostRecord:
        return CostRecord(
            dram_seconds=self.block_seconds.get(Tier.DRAM),
            disk_seconds=self.block_seconds.get(Tier.DISK),
            wait_seconds=self.wait_seconds,
            least_seconds=self.least_seconds,
            free_tokens=self._free_tokens,
            num_steps=self._steps.count,
            products=self._steps.products,
            targets=self._steps.targets,
        )

    def observe_copies(self, source: Tier, count: int, seconds: float) -> float:
        """So many that ended together: one alone may have waited for what others left to do.

        Answers what they should have taken.
        """
        mean = seconds / count
        known = self.block_seconds.setdefault(source, mean)
        weight = 1 - (1 - _WEIGHT_OF_BLOCK) ** count
        self.block_seconds[source] = known + weight * (min(mean, OUTLIER_FACTOR * known) - known)
        return known * count

    def assume_copy(self, tier: Tier, seconds: float) -> None:
        """Until one was fetched from there, fetching takes as long as putting it there did."""
        self.block_seconds.setdefault(tier, seconds)

    def relent(self) -> None:
        """What is not tried gets cheaper, so that a mistake about its price is found out."""
        self.wait_seconds *= _RELENTING
        self.block_seconds = {it: cost * _RELENTING for it, cost in self.block_seconds.items()}

    def observe_wait(self, seconds: float) -> None:
        """Of a prefix that was fetched while no step ran: what the prices of its blocks do not
        explain. So both together are right, whatever held up single copies."""
        self.wait_seconds = max(0.0, self.wait_seconds + _WEIGHT * (seconds - self.wait_seconds))

    def observe_step(self, tokens: int, prefilled: int, pairs: int, seconds: float) -> None:
        """A step has a least time, that of reading the weights; only above it tokens cost."""
        self._observe_least(tokens, seconds)
        # Of fewer tokens, one that took longer was held up. Never told by the time itself: a host
        # with other work would make short steps look like long ones that few tokens suffice for.
        if tokens <= self._free_tokens:
            return
        if prefilled >= PREFILL_MIN:
            self._steps.observe((1.0, tokens * _TOKENS, pairs * _PAIRS), seconds)

    def _observe_least(self, tokens: int, seconds: float) -> None:
        known = self.least_seconds
        if known is None or seconds < known:
            if known is None or _AT_LEAST * seconds < known:
                self._free_tokens = 0  # what was taken for the least was more
            self.least_seconds = seconds
        elif tokens <= SMALL_STEP:
            added = min(seconds, OUTLIER_FACTOR * known) - known
            self.least_seconds = known + _WEIGHT_ABOVE_LEAST * added
        if seconds <= _AT_LEAST * (self.least_seconds or 0.0):
            self._free_tokens = max(self._free_tokens, tokens)

    def compute_seconds(self, work: Computing) -> float | None:
        """What the prefix adds to the time of the rest; None where nobody knows yet."""
        if not self._steps.count and work.count + work.rest > self._free_tokens:
            return None
        behind = work.start + work.count
        whole = self._seconds(work.start, work.count + work.rest, work.step_tokens)
        return max(0.0, whole - self._seconds(behind, work.rest, work.step_tokens))

    def _seconds(self, start: int, count: int, step_tokens: int) -> float:
        least = self.least_seconds or 0.0
        if count <= self._free_tokens or not self._steps.count:
            return least
        step, token, pair = self._steps.coefficients()
        steps = max(1, -(-count // step_tokens))
        pairs = count * start + count * (count + 1) // 2
        return max(step * steps + token * count * _TOKENS + pair * pairs * _PAIRS, steps * least)

    def fetch_seconds(self, blocks: dict[Tier, int], queued: int = 0) -> float:
        """`queued`: blocks that are fetched before them."""
        if not any(blocks.values()):
            return 0.0
        prices = self.block_seconds
        own = sum(count * prices.get(tier, 0.0) for tier, count in blocks.items())
        return self.wait_seconds + own + queued * max(prices.values(), default=0.0)


def choose_reuse(
    tiers: Sequence[Tier],
    costs: FetchCosts,
    block_size: int,
    step_tokens: int,
    *,
    rest: int = 1,
    queued: int = 0,
) -> int:
    """How many leading blocks of a matched prefix to reuse, given where each one lies.

    `rest`: tokens of the prompt behind it; `queued`: blocks that others fetch before.

    Only ends of runs come into question: within a run every block has the same price, and the
    later ones save more.
    """
    best, best_seconds = 0, float("inf")
    for end in _run_ends(tiers):
        count = (len(tiers) - end) * block_size
        computing = costs.compute_seconds(Computing(end * block_size, count, rest, step_tokens))
        if computing is None:
            return len(tiers)  # nothing is known yet: what was kept is there to be used
        blocks = {tier: tiers[:end].count(tier) for tier in (Tier.DRAM, Tier.DISK)}
        seconds = computing + CAUTION * costs.fetch_seconds(blocks, queued)
        if seconds <= best_seconds:
            best, best_seconds = end, seconds
    return best


def _run_ends(tiers: Sequence[Tier]) -> list[int]:
    """Every index after which the tier changes, 0 and the length included."""
    changes = [at for at in range(1, len(tiers)) if tiers[at] is not tiers[at - 1]]
    return [0, *changes, len(tiers)]
