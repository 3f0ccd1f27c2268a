"""When an engine hangs: seen by the shell, never by the engine itself."""

from deepflow.core.process_state import is_stopped as is_stopped
from services.task_executor.flowserve.eye import Eye
from services.task_executor.flowserve.marks import Marks
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


class PulseTaker:
    """Sees that an engine of several ranks holds its interpreter in the middle of a step.

    A rank that hangs is named by the engine itself, rank 0 included, unless it cannot say a word.
    """

    def __init__(self, eye: Eye) -> None:
        self._eye = eye

    @classmethod
    def on(cls, marks: Marks, pid: int) -> "PulseTaker":
        return cls(Eye.on(marks, pid))

    def is_lost(self, has_step: bool, is_stopped: bool, now: float) -> bool:
        self._eye.look(now)
        if is_stopped or not has_step:
            self._eye.forget()
        return self._eye.silence.is_too_long


class Suspension:
    """How long a process has been stopped by a signal. Times are passed in."""

    def __init__(self) -> None:
        self._since: float | None = None

    def seconds(self, is_stopped: bool, now: float) -> float:
        if not is_stopped:
            self._since = None
            return 0.0
        if self._since is None:
            self._since = now
        return now - self._since
