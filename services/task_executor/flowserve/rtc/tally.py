"""What the cache did in its life, counted where it happens; nobody decides by it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.task_executor.flowserve.rtc.copies import Tier


@dataclass(slots=True)
class KvTally:
    # Tokens that were known when their sequence first ran, by where its KV lay when it was asked
    # for, and those that had to be computed.
    hit_tokens: list[int] = field(default_factory=lambda: [0] * len(Tier))
    missed_tokens: int = 0
    copies: "Counter[tuple[Tier, Tier, bool]]" = field(default_factory=Counter)
    # Sequences for which something was fetched, and those for which computing was thought quicker.
    fetches: int = 0
    computes: int = 0
    fetch_waits: list[float] = field(default_factory=list)  # seconds, until somebody takes them

    def admit(
        self, num_tokens: int, num_hit: int, block_size: int, sources: Sequence[Tier]
    ) -> None:
        """`sources`: of the leading blocks, the tiers they lay in; all others on the device."""
        self.missed_tokens += num_tokens - num_hit
        fetched = sources[: num_hit // block_size]
        for tier in fetched:
            self.hit_tokens[tier] += block_size
        self.hit_tokens[Tier.DEVICE] += num_hit - len(fetched) * block_size

    def take_waits(self) -> list[float]:
        waits, self.fetch_waits = self.fetch_waits, []
        return waits
