"""When a process that ended is started again. Pure: state and time in, decision out."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RestartState:
    """What is remembered of one process between its lives."""

    started_at: float = 0.0
    # Lives in a row that ended soon after their start.
    failures: int = 0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential back-off; a process that stayed up begins anew."""

    first_seconds: float = 0.1
    max_seconds: float = 10.0
    stable_seconds: float = 10.0

    def started(self, state: RestartState, now: float) -> RestartState:
        return replace(state, started_at=now)

    def ended(self, state: RestartState, now: float) -> tuple[RestartState, float]:
        """The state after this end, and how many seconds to wait before the next start."""
        was_stable = now - state.started_at > self.stable_seconds
        failures = 1 if was_stable else state.failures + 1
        return replace(state, failures=failures), self._delay(failures)

    def _delay(self, failures: int) -> float:
        # The exponent is bounded first: 2.0 ** 2000 does not fit a float.
        return min(self.first_seconds * 2.0 ** min(failures - 1, 30), self.max_seconds)
