"""Rank 0's executor, whose steps can be seen from outside as those of the other ranks can."""

from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.marks import Marks
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.ranks.pace import Pace


class PacedExecutor:
    def __init__(self, own: Executor, marks: Marks, pace: Pace) -> None:
        self._own = own
        self._marks = marks
        self._pace = pace

    def execute(self, plan: StepPlan) -> StepResult:
        self._pace.begin(plan)
        try:
            return self._own.execute(plan)
        finally:
            self._pace.end()
            self._marks.rest()

    def close(self) -> None:
        self._own.close()
