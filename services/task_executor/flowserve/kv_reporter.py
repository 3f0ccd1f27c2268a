"""Tells the shell how the cache stands: seldom while it works, once more when all is quiet."""

import msgspec

from services.task_executor.flowserve.messages import CopyCount, KvReport, TierReport
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.rtc.copies import Tier

REPORT_SECONDS = 0.5
WAITS_MAX = 256  # so many are told at once, however soon after the last report


class KvReporter:
    def __init__(self, cache: RelationalTensorCache) -> None:
        self._cache = cache
        self._due_at = 0.0
        self._last: KvReport | None = None

    def take(self, now: float, *, is_quiet: bool) -> KvReport | None:
        """None where it is too early, or nothing has changed since the last one."""
        tally = self._cache.tally
        if not is_quiet and now < self._due_at and len(tally.fetch_waits) < WAITS_MAX:
            return None
        self._due_at = now + REPORT_SECONDS
        report = self._report()
        if report == self._last and not tally.fetch_waits:
            return None
        self._last = report
        return msgspec.structs.replace(report, fetch_waits=tally.take_waits())

    def _report(self) -> KvReport:
        tally = self._cache.tally
        return KvReport(
            tiers=[
                TierReport(self._cache.num_used(it), self._cache.num_idle(it), tally.hit_tokens[it])
                for it in Tier
            ],
            missed_tokens=tally.missed_tokens,
            fetches=tally.fetches,
            computes=tally.computes,
            copies=[CopyCount(*key, count) for key, count in sorted(tally.copies.items())],
        )
