"""What one gateway may still spend of one limit in this minute. Pure: time is passed in.

It spends from a lease that the store granted, and asks for little pieces ahead, so that a request
seldom waits. A lease ends with its minute, so that all gateways together never spend more than the
limit. Without the store each gateway has its share of the limit.
"""

from deepflow.v1 import store_pb2
from services.gateway.limits.verdict import Verdict

MINUTE_SECONDS = 60.0
# As the store does it: no more ahead than this part of what is left for everybody.
AHEAD_PART = 16


class Allowance:
    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._lease = 0
        # Left for everybody when the store was last asked; None = not known in this minute.
        self._remaining: int | None = None
        self._window = -1
        self._ends_at = 0.0
        # Names the minute, so that what an earlier one paid for is not given back to this one.
        self.epoch = 0
        # Spent in this minute, however it was paid for.
        self._spent = 0
        # Spent without a grant; the store is still to hear of it.
        self._debt = 0
        self._asked_debt = 0

    def verdict(self, amount: int, now: float, share: int | None) -> Verdict:
        """`share` is what this gateway may spend while the store is away, else None."""
        self._roll(now)
        if amount > self.limit:
            return Verdict.REFUSE
        if amount <= self._lease:
            return Verdict.ADMIT
        if share is not None:
            return Verdict.ADMIT if self._spent + amount <= share else Verdict.REFUSE
        if self._remaining is not None and amount > self._lease + self._remaining:
            return Verdict.REFUSE
        return Verdict.ASK

    def spend(self, amount: int, now: float) -> int:
        """Also more than was granted: an answer may become longer than anybody knew.

        Answers the epoch to give back to.
        """
        self._roll(now)
        self._spent += amount
        granted = min(amount, self._lease)
        self._lease -= granted
        self._debt += amount - granted
        return self.epoch

    def give_back(self, amount: int, epoch: int, now: float) -> None:
        """What was spent in advance and not needed; nothing once its minute is over."""
        self._roll(now)
        if epoch != self.epoch:
            return
        self._spent -= amount
        forgiven = min(amount, self._debt - self._asked_debt)
        self._debt -= forgiven
        self._lease += amount - forgiven

    def ask(self, need: int) -> store_pb2.Take:
        """What to ask the store for, so that `need` is in hand; then `answer` or `no_answer`."""
        self._asked_debt = self._debt
        return store_pb2.Take(
            name=self.name,
            limit=self.limit,
            charge=self._asked_debt,
            need=max(0, need - self._lease),
            ahead=max(0, self._pace - self._lease),
        )

    def answer(self, taken: store_pb2.Taken, window: int, ends_at: float, now: float) -> None:
        """`ends_at` is reckoned from when the question was sent: no lease outlives its minute."""
        self._roll(now)
        self._debt -= self._asked_debt
        self._asked_debt = 0
        if window != self._window:
            self._window, self._lease = window, 0
        self._lease += taken.granted
        self._remaining = taken.remaining
        self._ends_at = ends_at

    def no_answer(self) -> None:
        self._asked_debt = 0

    @property
    def has_news(self) -> bool:
        return self._debt > 0

    @property
    def is_low(self) -> bool:
        """Time to ask ahead, before somebody must wait for it."""
        if self._remaining is None or self._remaining < AHEAD_PART:
            return False
        return self._lease * 2 < self._pace

    @property
    def _pace(self) -> int:
        """How much is good to have in hand: as much as was of use in this minute, within reason."""
        return min(self._spent, self.limit // AHEAD_PART)

    def left(self, now: float, share: int | None) -> int:
        self._roll(now)
        if share is not None:
            return max(self._lease, share - self._spent, 0)
        if self._remaining is None:
            return max(0, self.limit - self._spent)
        return self._lease + self._remaining

    def resets_in(self, now: float) -> float:
        self._roll(now)
        return self._ends_at - now

    def _roll(self, now: float) -> None:
        if now >= self._ends_at:
            self.epoch += 1
            self._lease = self._spent = 0
            self._remaining = None
            self._ends_at = now + MINUTE_SECONDS
