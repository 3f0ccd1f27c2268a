"""One task between its submission and its end: its span, its names, and where its time goes."""

import logging
from dataclasses import dataclass

from deepflow import clock
from deepflow.telemetry import Span
from services.task_executor.flowserve.messages import Finished

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Beginning:
    """Why the first token came when it came; None until the engine took the task up."""

    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    cached_tokens: int = 0

    @property
    def queued_seconds(self) -> float:
        return max(0.0, (self.started_at or self.submitted_at) - self.submitted_at)

    @property
    def prefill_seconds(self) -> float:
        if self.started_at is None or self.first_token_at is None:
            return 0.0
        return max(0.0, self.first_token_at - self.started_at)


class RunningTask:
    """Told only what happens once in its life; no token passes through it."""

    __slots__ = ("_names", "_span", "beginning")

    def __init__(self, span: Span, **names: str) -> None:
        """`names` are what its log lines carry: request and task."""
        self._span = span
        self._names = names
        self.beginning = Beginning(clock.monotonic())

    def started(self, cached_tokens: int, at: float) -> None:
        """The engine took it from its queue; `at` is when that step began."""
        self.beginning.started_at = at
        self.beginning.cached_tokens = cached_tokens
        milliseconds = round(self.beginning.queued_seconds * 1000, 2)
        self._span.event("started", queued_ms=milliseconds, cached_tokens=cached_tokens)

    def first_token(self, at: float) -> None:
        self.beginning.first_token_at = at
        milliseconds = round(self.beginning.prefill_seconds * 1000, 2)
        self._span.event("first_token", prefill_ms=milliseconds)

    def ended(self, finished: Finished) -> None:
        self._span.set(
            finish_reason=finished.reason,
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
        )
        if finished.reason == "error":
            self._span.fail(finished.message)
            if not finished.invalid:
                log.warning("a task failed: %s", finished.message, extra=self._names)
        self._span.end()

    def failed(self, message: str) -> None:
        """It ended without the engine's word."""
        log.info("a task ends early: %s", message, extra=self._names)
        self._span.fail(message)
        self._span.end()
