"""Each step runs while it is submitted: for devices whose steps take next to no time."""

from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.plan import StepPlan, StepResult


class InlineRunner:
    depth = 1
    wake_fds: tuple[int, ...] = ()

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._outcome: StepResult | Exception | None = None

    @property
    def is_ready(self) -> bool:
        return self._outcome is not None

    def submit(self, plan: StepPlan) -> None:
        assert self._outcome is None, "the step before was not collected"
        try:
            self._outcome = self._executor.execute(plan)
        except Exception as error:
            self._outcome = error
        except BaseException:  # Ctrl-C in a program that uses the engine as a library
            self._outcome = RuntimeError("the step was interrupted")
            raise

    def collect(self) -> StepResult:
        outcome, self._outcome = self._outcome, None
        assert outcome is not None, "no step was submitted"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        self._executor.close()
