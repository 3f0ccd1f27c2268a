"""The master: plans with scheduler and cache, lets the executor run it, takes in the answer."""

import logging
import time
from collections.abc import Callable

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.messages import Cancel, StepOutput, Submit
from services.task_executor.flowserve.plan import StepPlan
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.scheduler.scheduler import Scheduler
from services.task_executor.flowserve.step_clock import StepClock
from services.task_executor.flowserve.step_timing import StepTimePredictor

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3  # in a row; then the device is taken for broken


class Master:
    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        step_clock: StepClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        cache = RelationalTensorCache(config.kv_blocks, config.block_size)
        self._scheduler = Scheduler(config, cache)
        self._executor = executor
        self._clock = step_clock
        self._monotonic = monotonic
        self._timing = StepTimePredictor()
        self._failed_steps = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def obey(self, message: Submit | Cancel) -> None:
        if isinstance(message, Submit):
            self._scheduler.submit(message)
        else:
            self._scheduler.cancel(message.handles)

    def step(self) -> StepOutput | None:
        """Plan, execute, apply, report. None where nothing has happened since the last step."""
        plan = self._scheduler.plan()
        if plan is not None:
            self._run(plan)
        return self._scheduler.take_output()

    def close(self) -> StepOutput | None:
        """End every sequence and give the device back."""
        self._scheduler.cancel_all()
        self._executor.close()
        return self._scheduler.take_output()

    def _run(self, plan: StepPlan) -> None:
        """A step that fails costs its own sequences; the process only if it keeps happening."""
        num_tokens = plan.num_tokens
        started = self._monotonic()
        if self._clock is not None:
            self._clock.begin(plan.step, started, self._timing.predict(num_tokens))
        try:
            result = self._executor.execute(plan)
            self._scheduler.apply(result)
        except Exception as error:
            self._fail(error, self._monotonic() - started)
        else:
            self._failed_steps = 0
            self._timing.observe(num_tokens, result.seconds)
        finally:
            if self._clock is not None:
                self._clock.end()

    def _fail(self, error: Exception, seconds: float) -> None:
        self._failed_steps += 1
        if self._failed_steps >= MAX_FAILED_STEPS:
            raise error
        log.exception("a step failed, and its sequences with it", exc_info=error)
        self._scheduler.fail_step(f"the engine failed: {error}", seconds)
