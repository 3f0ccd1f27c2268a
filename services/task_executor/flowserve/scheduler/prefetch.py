"""Brings kept KV to the device for who waits, where that is quicker than to compute it again.

A sequence is looked at once each time that it waits, when it comes near the front: what is asked
for earlier would only push out what others need first. Whoever is fetched for holds nobody up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier
from services.task_executor.flowserve.rtc.fetch_costs import FetchCosts, choose_reuse
from services.task_executor.flowserve.scheduler.copy_watch import CopyWatch
from services.task_executor.flowserve.scheduler.flight import Flight
from services.task_executor.flowserve.scheduler.sequence import NO_POPULATE, Sequence

POPULATES_MAX = 8  # sequences fetched for at a time
LOOKAHEAD = 16  # places of the queue that are looked at
# When to fetch; all but the first are for measuring.
BY_COST, ALWAYS, NEVER = "by_cost", "always", "never"
CHOICES = (BY_COST, ALWAYS, NEVER)


@dataclass(frozen=True, slots=True)
class _Begun:
    seconds: float
    priced_seconds: float  # what the copies to the device that had ended by then should have taken
    step: int
    is_alone: bool  # no step was under way


class Prefetch:
    def __init__(self, config: EngineConfig, cache: RelationalTensorCache) -> None:
        self._config = config
        self._cache = cache
        self.costs = FetchCosts()
        self.watch = CopyWatch()
        self.choice = BY_COST
        self._begun: dict[int, _Begun] = {}  # by populate
        self._priced_seconds = 0.0

    @property
    def decisions(self) -> dict[str, int]:
        tally = self._cache.tally
        return {"fetch": tally.fetches, "compute": tally.computes}

    def consider(self, waiting: Iterable[Sequence], spare: int, now: float, step: int) -> None:
        """`step`: the last one planned, negative where none is under way."""
        if not self._cache.has_tiers:
            return
        self.watch.look(now, num_copying=self._cache.num_copying)
        self._consider_some(waiting, spare, now, step)
        # What has just begun is watched from now on: if it never ends, there is no next time.
        self.watch.look(now, num_copying=self._cache.num_copying)

    def _consider_some(
        self, waiting: Iterable[Sequence], spare: int, now: float, step: int
    ) -> None:
        for sequence in islice(waiting, LOOKAHEAD):
            if len(self._begun) >= POPULATES_MAX:
                return
            if sequence.is_considered or sequence.flights or sequence.unscored:
                continue
            if not self._consider(sequence, spare, now, step):
                return

    def is_fetching(self, sequence: Sequence) -> bool:
        if sequence.populate == NO_POPULATE:
            return False
        if self._cache.query_populate(sequence.populate) and not self.watch.is_stalled:
            return True
        self.forget(sequence)
        return False

    def forget(self, sequence: Sequence) -> None:
        """It does not wait for what is fetched any more."""
        if sequence.populate != NO_POPULATE:
            self._cache.cancel_populate(sequence.populate)
            self._begun.pop(sequence.populate, None)
            sequence.populate = NO_POPULATE

    def finish_copies(self, done: list[CopyDone], now: float, step: int) -> None:
        if done:
            self.watch.ended(now)
        fetched: dict[Tier, list[float]] = {}
        for it in done:
            copy = self._cache.finish_copy(it)
            if not it.is_good:
                continue
            if copy.target is Tier.DEVICE:
                fetched.setdefault(copy.source, []).append(it.seconds)
            else:
                self.costs.assume_copy(copy.target, it.seconds)
        for source, seconds in fetched.items():
            priced = self.costs.observe_copies(source, len(seconds), sum(seconds))
            self._priced_seconds += priced
        for number in [it for it in self._begun if not self._cache.query_populate(it)]:
            begun = self._begun.pop(number)
            self._cache.tally.fetch_waits.append(max(0.0, now - begun.seconds))
            self._observe_end(begun, now, step)

    def take_copies(self, landed: int) -> list[BlockCopy]:
        """What is fetched, and what is put away because room runs short."""
        self._cache.swap_out()
        return self._cache.take_copies(landed)

    def observe_step(self, flight: Flight, seconds: float) -> None:
        if not self._cache.has_tiers:
            return
        plan = flight.plan
        pairs = sum(
            count * start + count * (count + 1) // 2
            for start, count in zip(plan.starts, plan.counts, strict=True)
        )
        prefilled = plan.num_tokens - flight.num_decoding
        self.costs.observe_step(plan.num_tokens, prefilled, pairs, seconds)

    def choose(self, tiers: list[Tier], num_tokens: int) -> int:
        """How many blocks of a matched prefix to reuse, by where each one lies.

        `num_tokens`: of the whole prompt.
        """
        if self.choice == ALWAYS:
            return len(tiers)
        if self.choice == NEVER or self.watch.is_stalled:
            return next(at for at, tier in enumerate(tiers) if tier is not Tier.DEVICE)
        config = self._config
        return choose_reuse(
            tiers,
            self.costs,
            config.block_size,
            config.max_step_tokens,
            rest=num_tokens - len(tiers) * config.block_size,
            queued=self._cache.num_arriving,
        )

    def _consider(self, sequence: Sequence, spare: int, now: float, step: int) -> bool:
        """False where it has to be asked again, unless it is admitted first: there is no room."""
        nodes = self._cache.match_in_tiers(sequence.chain, sequence.token_ids)
        tiers = [node.nearest for node in nodes]
        is_anything_elsewhere = any(tier is not Tier.DEVICE for tier in tiers)
        nodes = (
            nodes[: self.choose(tiers, len(sequence.token_ids))] if is_anything_elsewhere else []
        )
        nodes = self._cache.fetchable(nodes)
        if any(not node.is_in(Tier.DEVICE) for node in nodes):
            number = self._cache.populate(nodes, spare=spare)
            if number is None:
                return False
            sequence.populate = number
            self._begun[number] = _Begun(now, self._priced_seconds, abs(step), step < 0)
            sequence.sources = tiers[: len(nodes)]
            self._cache.tally.fetches += 1
        elif is_anything_elsewhere:
            self._cache.tally.computes += 1
            if self.choice == BY_COST:  # the price was asked for
                self.costs.relent()
        sequence.is_considered = True
        return True

    def _observe_end(self, begun: _Begun, now: float, step: int) -> None:
        """Beside steps the time until somebody looks is theirs, and spent anyway."""
        if begun.is_alone and step == -begun.step:
            priced = self._priced_seconds - begun.priced_seconds
            self.costs.observe_wait(now - begun.seconds - priced)
