"""When a step is a hang: seen by the shell, never by the engine itself. Pure."""

from services.task_executor.flowserve.step_clock import StepInProgress


def is_hung(
    running: StepInProgress | None, now: float, *, factor: float, floor_seconds: float
) -> bool:
    if running is None:
        return False
    allowed = max(floor_seconds, factor * running.predicted_seconds)
    return now - running.started_seconds > allowed
