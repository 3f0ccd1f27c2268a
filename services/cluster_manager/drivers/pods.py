"""What the driver says, together with what it was just asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.cluster_manager.drivers.base import PodReport
from services.cluster_manager.reconcile.state import Kind, Pod

# A pod that was asked for and is in no report after this long is asked for again.
START_SECONDS = 5.0
START_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Start:
    kind: Kind
    asked_at: float
    expires_at: float


class PodTable:
    """Bridges the moment between an order and its report. Times are passed in."""

    def __init__(self) -> None:
        self._starts: dict[str, _Start] = {}
        self._stops: set[str] = set()
        self._seen_at: dict[str, float] = {}
        self._gone: dict[str, int] = {}

    @property
    def gone(self) -> Mapping[str, int]:
        """Pods that were reported once and are no more, and since when (unix ms)."""
        return dict(self._gone)

    def starting(self, name: str, kind: Kind, now: float) -> None:
        self._starts[name] = _Start(kind, now, now + START_SECONDS)
        self._gone.pop(name, None)

    def start_failed(self, name: str, now: float) -> None:
        """Asked for again, but not at once."""
        if name in self._starts:
            self._starts[name].expires_at = now + START_RETRY_SECONDS

    def stopping(self, name: str) -> None:
        self._stops.add(name)

    def stop_ended(self, name: str) -> None:
        self._stops.discard(name)

    def is_stopping(self, name: str) -> bool:
        return name in self._stops

    def merge(
        self, reports: Mapping[str, PodReport] | None, now: float, now_unix_ms: int
    ) -> dict[str, Pod] | None:
        if reports is None:
            return None
        self._follow(reports, now, now_unix_ms)
        pods = {name: self._pod(report) for name, report in reports.items()}
        for name, start in self._starts.items():
            pods[name] = Pod(name, start.kind, 0, False, 0, start.asked_at)
        return pods

    def _follow(self, reports: Mapping[str, PodReport], now: float, now_unix_ms: int) -> None:
        for name in reports:
            self._seen_at.setdefault(name, now)
            self._gone.pop(name, None)
        for name in [name for name in self._seen_at if name not in reports]:
            del self._seen_at[name]
            self._gone[name] = now_unix_ms
        self._starts = {
            name: start
            for name, start in self._starts.items()
            if name not in reports and now < start.expires_at
        }

    def _pod(self, report: PodReport) -> Pod:
        return Pod(
            name=report.name,
            kind=report.kind,
            pid=report.pid,
            is_running=report.is_running,
            since_unix_ms=report.since_unix_ms,
            seen_at=self._seen_at[report.name],
            is_stopping=report.is_stopping or report.name in self._stops,
        )
