"""How busy the engine is: what heartbeats carry and metrics show."""

from collections import Counter

from deepflow import clock
from deepflow.v1 import events_pb2
from services.task_executor.flowserve.messages import Loaded, StepOutput
from services.task_executor.shell.histogram import Histogram
from services.task_executor.shell.kv_meter import KvMeter
from services.task_executor.shell.running_task import Beginning

_STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WAIT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_GRAMMAR_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class LoadMeter:
    """Follows the engine's steps; costs one method call a step."""

    def __init__(self) -> None:
        self.tokens = 0
        self.embeddings = 0
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self.engines_lost = 0
        self.ended: Counter[str] = Counter()  # tasks by reason
        self.grammars: Counter[str] = Counter()  # compiled or refused
        self.step_times = Histogram(*_STEP_SECONDS)
        self.queue_times = Histogram(*_WAIT_SECONDS)
        self.prefill_times = Histogram(*_WAIT_SECONDS)
        self.grammar_times = Histogram(*_GRAMMAR_SECONDS)
        self.kv = KvMeter()
        self.deployment = ""
        self._step = 0
        self._last: StepOutput | None = None
        self._total_blocks = 0
        self._rate_since = clock.monotonic()
        self._rate_tokens = 0

    def add(self, output: StepOutput) -> None:
        if output.step != self._step:  # others report what happened between two steps
            self._step = output.step
            self.steps += 1
            self.step_times.observe(output.seconds)
        self.tokens += len(output.handles)
        self.embeddings += len(output.embeddings)
        self.preemptions += output.preemptions
        if output.finished:
            self._add_finished(output)
        for grammar in output.grammars:
            self.grammars["compiled" if grammar.is_good else "refused"] += 1
            self.grammar_times.observe(grammar.seconds)
        if output.kv is not None:
            self.kv.add(output.kv)
        self._last = output

    def _add_finished(self, output: StepOutput) -> None:
        for finished in output.finished:
            reason = "invalid" if finished.invalid else finished.reason
            self.ended["busy" if finished.busy else reason] += 1
            self.prompt_tokens += finished.prompt_tokens
            self.cached_prompt_tokens += finished.cached_tokens

    def begun(self, beginning: Beginning) -> None:
        """A task has its first token."""
        self.queue_times.observe(beginning.queued_seconds)
        self.prefill_times.observe(beginning.prefill_seconds)

    def loaded(self, loaded: Loaded) -> None:
        self.deployment = loaded.deployment
        # The trash block is nobody's; an encoder has none at all.
        self._total_blocks = max(0, loaded.kv_blocks - 1)
        self.kv.loaded(loaded)

    def engine_lost(self) -> None:
        self.engines_lost += 1
        self.unloaded()

    def unloaded(self) -> None:
        """What was held is held no more; what was counted stays counted."""
        self.deployment = ""
        self._total_blocks = 0
        self.kv.lost()
        self._last, self._step = None, 0

    @property
    def waiting(self) -> int:
        return self._last.waiting if self._last else 0

    @property
    def running(self) -> int:
        return self._last.running if self._last else 0

    @property
    def free_blocks(self) -> int:
        return self._last.free_blocks if self._last else self._total_blocks

    @property
    def total_blocks(self) -> int:
        return self._total_blocks

    @property
    def step_seconds(self) -> float:
        return self._last.seconds if self._last else 0.0

    def fill(self, load: events_pb2.Load) -> None:
        load.waiting = self.waiting
        load.running = self.running
        load.free_blocks = self.free_blocks
        load.total_blocks = self._total_blocks
        load.step_milliseconds = self.step_seconds * 1000
        load.tokens_per_second = self._take_rate()
        self.kv.fill(load)

    def _take_rate(self) -> float:
        """Tokens per second since the last heartbeat."""
        now = clock.monotonic()
        seconds = max(now - self._rate_since, 1e-6)
        rate = (self.tokens - self._rate_tokens) / seconds
        self._rate_since, self._rate_tokens = now, self.tokens
        return rate
