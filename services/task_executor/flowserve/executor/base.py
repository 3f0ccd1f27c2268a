"""What the master asks of the devices that run its plans."""

from typing import Protocol

from services.task_executor.flowserve.plan import StepPlan, StepResult


class Executor(Protocol):
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step and answer for every row that samples: a token, or why it failed.

        A fault of one sequence goes to `failures`; raising fails every sequence of the plan. After
        a raise the rows of that plan are released again, so releasing a free row changes nothing.
        """

    def close(self) -> None:
        """Give back memory, streams and peers. Called once; nothing is executed after it."""
