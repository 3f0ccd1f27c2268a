"""How many requests of one tenant this gateway may have under way. Pure: time is passed in."""

from deepflow.v1 import store_pb2
from services.gateway.limits.verdict import Verdict

# Spare places, held for what comes next: this part of those in use.
SPARE_PART = 4


class Slots:
    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.in_use = 0
        self._held = 0
        self._held_until = 0.0

    def verdict(self, now: float, share: int | None) -> Verdict:
        """`share` is what this gateway may use while the store is away, else None."""
        if self.in_use < self._holds(now):
            return Verdict.ADMIT
        if share is not None:
            return Verdict.ADMIT if self.in_use < share else Verdict.REFUSE
        return Verdict.ASK

    def take(self) -> None:
        self.in_use += 1

    def release(self) -> None:
        self.in_use -= 1

    def ask(self, waiting: int) -> store_pb2.HoldSlots:
        return store_pb2.HoldSlots(
            name=self.name,
            limit=self.limit,
            need=self.in_use + waiting,
            ahead=self.in_use // SPARE_PART,
        )

    def answer(self, held: int, until: float) -> None:
        self._held, self._held_until = held, until

    @property
    def has_news(self) -> bool:
        """More is held than is of use here: others may want it."""
        return self._held > self.in_use + self.in_use // SPARE_PART

    @property
    def is_alive(self) -> bool:
        return self.in_use > 0 or self._held > 0

    def left(self, now: float) -> int:
        return max(0, self._holds(now) - self.in_use)

    def _holds(self, now: float) -> int:
        return self._held if now < self._held_until else 0
