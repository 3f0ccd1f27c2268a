"""The master: plans with scheduler and cache, lets the executor run it, takes in the answer."""

import logging
import time
from collections.abc import Callable

import msgspec

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.held import HeldSequences
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.waiting import GrammarsBusy
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
        grammars: Grammars | None = None,
        step_clock: StepClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._grammars = grammars
        self._held = HeldSequences()
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

    @property
    def num_held(self) -> int:
        """Sequences that wait for their grammar: no work yet, but somebody waits."""
        return len(self._held)

    @property
    def wake_fds(self) -> list[int]:
        """Readable when there is something to do that did not come through `obey`."""
        return [self._grammars.fileno()] if self._grammars is not None else []

    def obey(self, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            self._cancel_held(self._held.drop(message.handles))
            self._scheduler.cancel(message.handles)
        elif message.sampling.grammar is None or self._scheduler.find_fault(message):
            self._scheduler.submit(message)
        else:
            self._submit_with_grammar(message, message.sampling.grammar)

    def step(self) -> StepOutput | None:
        """Plan, execute, apply, report. None where nothing has happened since the last step."""
        self._take_grammars()
        plan = self._scheduler.plan()
        if plan is not None:
            self._run(plan)
        return self._take_output()

    def close(self) -> StepOutput | None:
        """End every sequence and give the device back."""
        self._cancel_held(self._held.release_all())
        self._scheduler.cancel_all()
        output = self._take_output()
        self._executor.close()
        if self._grammars is not None:
            self._grammars.close()
        return output

    def _submit_with_grammar(self, message: Submit, grammar: Grammar) -> None:
        """At once where the grammar is ready; otherwise the sequence is held, not accepted."""
        if self._grammars is None:
            self._refuse_grammar(message, "this engine has no structured output")
            return
        try:
            self._grammars.pin(message.handle, grammar)
            if self._grammars.prepare(grammar, message.cache_salt):
                self._submit_prepared(message, grammar)
            else:
                self._held.hold(message)
        except GrammarError as error:
            self._refuse_grammar(message, str(error))
        except GrammarsBusy:
            self._scheduler.refuse(message, "too many grammars wait to be compiled", busy=True)

    def _refuse_grammar(self, message: Submit, fault: str) -> None:
        self._scheduler.refuse(message, fault, invalid=True, param=message.sampling.grammar_param)

    def _submit_prepared(self, message: Submit, grammar: Grammar) -> None:
        """An answer that is resumed may be complete already."""
        assert self._grammars is not None
        resumed = message.resume_token_ids
        try:
            is_complete = bool(resumed) and self._grammars.is_complete(grammar, resumed)
        except GrammarError as error:
            self._refuse_grammar(message, f"the resumed answer does not fit the grammar: {error}")
        else:
            self._scheduler.submit(message, is_complete=is_complete)

    def _take_grammars(self) -> None:
        if self._grammars is None:
            return
        for grammar, outcome in self._grammars.take_done().items():
            for message in self._held.release(grammar):
                if not outcome.fault:
                    self._submit_prepared(message, grammar)
                elif outcome.is_invalid:
                    self._refuse_grammar(message, outcome.fault)
                else:
                    self._scheduler.refuse(message, outcome.fault, busy=True)

    def _cancel_held(self, messages: list[Submit]) -> None:
        for message in messages:
            self._scheduler.refuse(message, "", reason="cancelled")
            grammar = message.sampling.grammar
            if grammar is not None and self._grammars is not None and grammar not in self._held:
                self._grammars.forgo(grammar)

    def _take_output(self) -> StepOutput | None:
        output = self._scheduler.take_output()
        if output is not None and self._grammars is not None:
            for finished in output.finished:
                self._grammars.unpin(finished.handle)
            if timings := self._grammars.take_timings():
                output = msgspec.structs.replace(output, grammars=timings)
        return output

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
