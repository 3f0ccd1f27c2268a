"""How busy the engine is: what heartbeats carry and metrics show."""

from deepflow import clock
from deepflow.v1 import events_pb2
from services.task_executor.flowserve.messages import Loaded, StepOutput


class LoadMeter:
    """Follows the engine's steps; costs one method call a step."""

    def __init__(self) -> None:
        self.tokens = 0
        self.embeddings = 0
        self.steps = 0
        self._last: StepOutput | None = None
        self._total_blocks = 0
        self._rate_since = clock.monotonic()
        self._rate_tokens = 0

    def add(self, output: StepOutput) -> None:
        self.steps += 1
        self.tokens += len(output.handles)
        self.embeddings += len(output.embeddings)
        self._last = output

    def loaded(self, loaded: Loaded) -> None:
        # The trash block is nobody's; an encoder has none at all.
        self._total_blocks = max(0, loaded.kv_blocks - 1)

    def reset(self) -> None:
        self._last = None

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
    def step_seconds(self) -> float:
        return self._last.seconds if self._last else 0.0

    def fill(self, load: events_pb2.Load) -> None:
        load.waiting = self.waiting
        load.running = self.running
        load.free_blocks = self.free_blocks
        load.total_blocks = self._total_blocks
        load.step_milliseconds = self.step_seconds * 1000
        load.tokens_per_second = self._take_rate()

    def _take_rate(self) -> float:
        """Tokens per second since the last heartbeat."""
        now = clock.monotonic()
        seconds = max(now - self._rate_since, 1e-6)
        rate = (self.tokens - self._rate_tokens) / seconds
        self._rate_since, self._rate_tokens = now, self.tokens
        return rate
