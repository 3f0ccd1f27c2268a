"""The master: plans with scheduler and cache, lets a runner run it, takes in the answer.

Where the runner takes two steps at a time the next one is planned while one runs, as late as is
safe: whoever comes meanwhile is still in it.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable

import msgspec

from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.context_keeper import ContextKeeper
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.failed_steps import FailedSteps
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.held import HeldSequences
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.waiting import GrammarsBusy
from services.task_executor.flowserve.kv_reporter import KvReporter
from services.task_executor.flowserve.messages import (
    Cancel,
    ContextRequest,
    DropContext,
    KeepContext,
    ListContexts,
    StepOutput,
    Submit,
)
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.runner.base import StepRunner
from services.task_executor.flowserve.runner.inline import InlineRunner
from services.task_executor.flowserve.runner.ranks import RanksRunner
from services.task_executor.flowserve.runner.threaded import ThreadedRunner
from services.task_executor.flowserve.scheduler.scheduler import Scheduler
from services.task_executor.flowserve.step_clock import StepClock
from services.task_executor.flowserve.step_timing import StepTimePredictor
from services.task_executor.flowserve.step_trace import StepSpan, StepTrace
from services.task_executor.flowserve.tiers.build import Tiers

# How long before the running step can end the next one is planned: planning takes a fraction of a
# millisecond, but a busy host may wake us late, and then the device stands still.
AHEAD_SECONDS_MIN = 0.005
AHEAD_SHARE = 0.1  # of the least time that such a step takes


class Master:
    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        grammars: Grammars | None = None,
        tiers: Tiers | None = None,
        step_clock: StepClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._grammars = grammars
        self._held = HeldSequences()
        self.cache = RelationalTensorCache(
            config.kv_blocks,
            config.block_size,
            dram_blocks=config.kv_dram_blocks,
            disk_blocks=config.kv_disk_blocks,
        )
        assert self.cache.has_tiers == (tiers is not None), "tiers without somebody who copies"
        self._tiers = tiers
        self._scheduler = Scheduler(config, self.cache)
        self._contexts = ContextKeeper(config, self.cache, self._scheduler)
        self._kv_reporter = KvReporter(self.cache)
        self.prefetch = self._scheduler.prefetch
        if tiers is not None:
            self.prefetch.costs = tiers.costs.read()
        self._runner = make_runner(executor, config.steps_in_flight)
        self._running: deque[StepPlan] = deque()  # submitted and not yet collected
        self._began = 0.0  # the first of those
        self._plan_at = 0.0  # when to plan the next one
        self._is_stuck = False  # nobody can be planned until something happens
        self._clock = step_clock
        self.trace: StepTrace | None = None
        self._spans: deque[StepSpan] = deque()  # of the running plans, where there is a trace
        self._monotonic = monotonic
        self._timing = StepTimePredictor()
        self._failed_steps = FailedSteps()

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
        grammars = [self._grammars.fileno()] if self._grammars is not None else []
        tiers = self._tiers.mover.wake_fds if self._tiers is not None else ()
        return [*grammars, *self._runner.wake_fds, *tiers]

    @property
    def seconds_to_next(self) -> float | None:
        """0 where `step` has something to do; None where it has not before somebody wakes it."""
        if self._runner.is_ready:
            return 0.0
        if not self._may_plan:
            return self._seconds_to_stall if self._is_stuck else None
        return max(0.0, self._plan_at - self._monotonic()) if self._running else 0.0

    def obey(self, message: Submit | Cancel | ContextRequest) -> None:
        self._is_stuck = False
        if isinstance(message, KeepContext | DropContext | ListContexts):
            self._contexts.obey(message, self._monotonic())
            return
        if isinstance(message, Submit) and message.context_id:
            resolved = self._contexts.resolve(message, self._monotonic())
            if resolved is None:
                return
            message = resolved
        if isinstance(message, Cancel):
            self._cancel_held(self._held.drop(message.handles))
            self._scheduler.cancel(message.handles)
        elif message.sampling.grammar is None or self._scheduler.find_fault(message):
            self._scheduler.submit(message, now=self._monotonic())
        else:
            self._submit_with_grammar(message, message.sampling.grammar)

    @property
    def _seconds_to_stall(self) -> float | None:
        at = self.prefetch.watch.stalls_at
        return None if at is None else max(0.0, at - self._monotonic())

    def step(self) -> StepOutput | None:
        """Plan, run, take in, report. None where nothing has happened since the last call."""
        if self._is_stuck and self._seconds_to_stall == 0.0:
            self._is_stuck = False
        self._take_grammars()
        self._take_copies()
        if self._may_plan and (not self._running or self._monotonic() >= self._plan_at):
            self._launch()
        if self._runner.is_ready:
            self._land()
        self._send_copies()
        return self._take_output()

    def close(self) -> StepOutput | None:
        """End every sequence and give the device back."""
        self._cancel_held(self._held.release_all())
        self._scheduler.cancel_all()
        self._void_running()  # nobody is left whom it could concern, however it ended
        if self._clock is not None:
            self._clock.end()
        output = self._take_output()
        if self._tiers is not None:
            self._tiers.mover.close()
            self._tiers.costs.write(self.prefetch.costs)
        self._runner.close()
        if self._grammars is not None:
            self._grammars.close()
        return output

    def _take_copies(self) -> None:
        if self._tiers is not None and (done := self._tiers.mover.take_done()):
            self._is_stuck = False
            self._scheduler.finish_copies(done, self._monotonic())

    def _send_copies(self) -> None:
        if self._tiers is not None and (copies := self._scheduler.take_copies()):
            self._tiers.mover.submit(copies)

    def _submit_with_grammar(self, message: Submit, grammar: Grammar) -> None:
        """At once where the grammar is ready; otherwise the sequence is held, not accepted."""
        if self._grammars is None:
            self._refuse_grammar(message, GrammarError("this engine has no structured output"))
            return
        try:
            self._grammars.pin(message.handle, grammar)
            if self._grammars.prepare(grammar, message.cache_salt):
                self._submit_prepared(message, grammar)
            else:
                self._held.hold(message)
        except GrammarError as error:
            self._refuse_grammar(message, error)
        except GrammarsBusy:
            self._scheduler.refuse(message, "too many grammars wait to be compiled", busy=True)

    def _refuse_grammar(self, message: Submit, error: GrammarError) -> None:
        param = message.sampling.grammar_param
        if error.part is not None and error.part < len(message.sampling.grammar_part_params):
            param = message.sampling.grammar_part_params[error.part]
        said = f"{repr(param) if param else 'the grammar'} cannot be followed: {error}"
        self._scheduler.refuse(message, said, invalid=True, param=param)

    def _submit_prepared(self, message: Submit, grammar: Grammar) -> None:
        """An answer that is resumed may be complete already."""
        assert self._grammars is not None
        resumed = message.resume_token_ids
        try:
            is_complete = bool(resumed) and self._grammars.is_complete(grammar, resumed)
        except GrammarError as error:
            fault = GrammarError(f"the resumed answer does not fit it: {error}")
            self._refuse_grammar(message, fault)
        else:
            self._scheduler.submit(message, is_complete=is_complete, now=self._monotonic())

    def _take_grammars(self) -> None:
        if self._grammars is None:
            return
        for grammar, outcome in self._grammars.take_done().items():
            self._is_stuck = False
            for message in self._held.release(grammar):
                if not outcome.fault:
                    self._submit_prepared(message, grammar)
                elif outcome.is_invalid:
                    self._refuse_grammar(message, GrammarError(outcome.fault, outcome.part))
                else:
                    self._scheduler.refuse(message, outcome.fault, busy=True)

    def _cancel_held(self, messages: list[Submit]) -> None:
        for message in messages:
            self._scheduler.refuse(message, "", reason="cancelled")
            grammar = message.sampling.grammar
            if grammar is not None and self._grammars is not None and grammar not in self._held:
                self._grammars.forgo(grammar)

    def _take_output(self) -> StepOutput | None:
        now = self._monotonic()
        output = self._scheduler.take_output()
        if output is not None and self._grammars is not None:
            for finished in output.finished:
                self._grammars.unpin(finished.handle)
            if timings := self._grammars.take_timings():
                output = msgspec.structs.replace(output, grammars=timings)
        return self._with_kv_report(self._contexts.take(output, now), now)

    def _with_kv_report(self, output: StepOutput | None, now: float) -> StepOutput | None:
        """Copies go on after the last answer: their end is told without one."""
        is_quiet = not self._scheduler.has_work and not self.cache.num_copying
        if output is None and (self._tiers is None or not is_quiet):
            return None
        report = self._kv_reporter.take(now, is_quiet=is_quiet)
        if report is None:
            return output
        output = output or self._scheduler.take_output(is_forced=True)
        assert output is not None
        return msgspec.structs.replace(output, kv=report)

    @property
    def _may_plan(self) -> bool:
        has_room = len(self._running) < self._runner.depth
        return has_room and not self._is_stuck and self._scheduler.has_work

    def _launch(self) -> None:
        started = self._monotonic()
        plan = self._scheduler.plan(started)
        if plan is None:
            self._is_stuck = True
            return
        if self.trace is not None:
            during = (started, self._monotonic())
            contexts = [a + b for a, b in zip(plan.starts, plan.counts, strict=True)]
            span = StepSpan(plan.step, len(plan.rows), plan.num_tokens, during, contexts=contexts)
            self._spans.append(span)
        self._running.append(plan)
        if len(self._running) == 1:
            self._begin()
        self._send_copies()  # beside this step, not behind it
        self._runner.submit(plan)

    def _begin(self) -> None:
        """The first of the running plans is on the device from now on."""
        plan = self._running[0]
        predicted = self._timing.predict(plan.num_tokens)
        self._began = self._monotonic()
        least = self._timing.least(plan.num_tokens)
        self._plan_at = self._began + least - max(AHEAD_SECONDS_MIN, AHEAD_SHARE * least)
        if not self.config.runs_ahead:  # the first stage of a pipeline is free long before
            self._plan_at = self._began
        if self._clock is not None:
            self._clock.begin(plan.step, self._began, predicted)

    def _land(self) -> None:
        """A step that fails costs its own sequences; the process only if it keeps happening."""
        plan = self._running.popleft()
        self._is_stuck = False
        try:
            result = self._runner.collect()
            landed = self._monotonic()
            self._scheduler.apply(result)
        except Exception as error:
            self._void_running()
            message = self._failed_steps.failed(error)
            self._scheduler.fail_flights(message, self._monotonic() - self._began)
        else:
            self._failed_steps.succeeded()
            self._timing.observe(plan.num_tokens, result.seconds)
            self._record(result, landed)
        if self._running:
            self._begin()
        elif self._clock is not None:
            self._clock.end()

    def _record(self, result: StepResult, landed: float) -> None:
        # A trace may have begun while this step was under way.
        if self.trace is None or not self._spans or self._spans[0].step != result.step:
            return
        span = self._spans.popleft()
        span.ran = (result.began, result.began + result.seconds)
        span.applied = (landed, self._monotonic())
        span.is_last = not self._scheduler.has_work
        self.trace.spans.append(span)

    def _void_running(self) -> None:
        """Behind a failed step it stands on nothing."""
        self._spans.clear()
        while self._running:
            self._running.popleft()
            with contextlib.suppress(Exception):
                self._runner.collect()


def make_runner(executor: Executor, depth: int) -> StepRunner:
    if isinstance(executor, RanksRunner):
        return executor
    return InlineRunner(executor) if depth == 1 else ThreadedRunner(executor, depth)
