"""The requests that are being answered."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from deepflow import clock
from deepflow.errors import RateLimited, Unavailable
from services.gateway.catalog import RETRY_AFTER_SECONDS

# One place in eight is for tenants that have less than that.
KEPT_SHARE = 8
TENANT_QUEUE_FULL = "tenant_queue_full"
# A tenant whose queue is full is told so here for a moment, before its bodies are even read.
TURNED_AWAY_SECONDS = 1.0


class UnderWay:
    """Counted over all routes that make jobs: their bound is one, and a drain waits for all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = most // KEPT_SHARE
        self._by_tenant: Counter[str] = Counter()
        self._turned_away: dict[str, tuple[float, str, float]] = {}  # until when, why, retry after
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def of(self, tenant: str) -> int:
        return self._by_tenant.get(tenant, 0)

    @contextlib.contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Raises Unavailable where there are too many already, RateLimited where the tenant has
        so many that what is left is for others.
        """
        self._check(tenant)
        self.count += 1
        self._by_tenant[tenant] += 1
        self.idle.clear()
        try:
            yield
        except RateLimited as error:
            if error.reason == TENANT_QUEUE_FULL:
                until = clock.monotonic() + TURNED_AWAY_SECONDS
                self._turned_away[tenant] = until, error.message, error.retry_after_seconds
            raise
        finally:
            self.count -= 1
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
            if not self.count:
                self.idle.set()

    def _check(self, tenant: str) -> None:
        if tenant in self._turned_away:
            until, why, retry_after = self._turned_away[tenant]
            if clock.monotonic() < until:
                raise RateLimited(why, reason=TENANT_QUEUE_FULL, retry_after_seconds=retry_after)
            del self._turned_away[tenant]
        if self.count >= self._most:
            raise Unavailable(
                "too many requests are running; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        own = self.of(tenant)
        if own > self._kept and self.count >= self._most - self._kept:
            raise RateLimited(
                f"{own} requests of this tenant are under way here; the places that are left are"
                " for others",
                reason=TENANT_QUEUE_FULL,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
