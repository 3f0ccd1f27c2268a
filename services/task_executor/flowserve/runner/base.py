"""What the master asks of whoever runs its steps."""

from collections.abc import Sequence
from typing import Protocol

from services.task_executor.flowserve.plan import StepPlan, StepResult


class StepRunner(Protocol):
    """Runs plans one after the other, in the order in which they came."""

    depth: int  # plans that it takes before the first is collected

    def submit(self, plan: StepPlan) -> None:
        """Run it after all that were submitted before."""

    @property
    def is_ready(self) -> bool:
        """Would `collect` answer at once?"""

    @property
    def wake_fds(self) -> Sequence[int]:
        """Readable when a step has ended; empty where `collect` never has to wait."""

    def collect(self) -> StepResult:
        """The answer to the oldest plan; waits for it, and raises what its step raised."""

    def close(self) -> None:
        """Called once everything was collected; the executor goes with it."""
