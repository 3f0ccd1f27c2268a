"""When an engine hangs: seen by the shell, never by the engine itself. Pure."""

from services.task_executor.flowserve.step_clock import StepInProgress


def is_hung(
    running: StepInProgress | None,
    quiet_since: float,
    now: float,
    *,
    factor: float,
    floor_seconds: float,
) -> bool:
    """A step far beyond its prediction, or work and neither a step nor a word for long.

    `quiet_since`: when the engine was last heard, or last had nothing to do.
    """
    if running is None:
        return now - quiet_since > floor_seconds
    allowed = max(floor_seconds, factor * running.predicted_seconds)
    return now - running.started_seconds > allowed
