"""Who asked for a model lately: those for whom some rows are kept, though nothing of theirs waits.

Pure: time is passed in.
"""

from collections import OrderedDict

# Somebody who asks now and then finds a row each time; a lone tenant soon has them all.
SECONDS = 600.0
TENANTS_MAX = 1024


class RecentTenants:
    def __init__(self, seconds: float = SECONDS, most: int = TENANTS_MAX) -> None:
        self._seconds = seconds
        self._most = most
        # By tenant: its weight, and when it asked last; longest ago first.
        self._asked: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, tenant: str, weight: float, now: float) -> None:
        self._asked[tenant] = weight, now
        self._asked.move_to_end(tenant)
        self._forget(now)

    def weights(self, now: float) -> dict[str, float]:
        self._forget(now)
        return {tenant: weight for tenant, (weight, _) in self._asked.items()}

    def _forget(self, now: float) -> None:
        while self._asked:
            tenant, (_, asked) = next(iter(self._asked.items()))
            if now - asked < self._seconds and len(self._asked) <= self._most:
                return
            del self._asked[tenant]
