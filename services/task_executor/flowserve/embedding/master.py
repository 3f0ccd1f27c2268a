"""The master of an encoder: takes texts in, lets a batch of them run, reports their vectors."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from services.task_executor.flowserve.embedding.config import EmbeddingConfig
from services.task_executor.flowserve.embedding.queue import EmbeddingQueue, Refusal, Waiting
from services.task_executor.flowserve.failed_steps import FailedSteps
from services.task_executor.flowserve.messages import (
    Cancel,
    Embedding,
    Finished,
    StepOutput,
    Submit,
)
from services.task_executor.flowserve.step_clock import StepClock
from services.task_executor.flowserve.step_timing import StepTimePredictor

NOT_FINITE = "the model's numbers for this input are not finite"


class Executor(Protocol):
    def execute(self, texts: Sequence[Sequence[int]]) -> list[bytes | None]: ...

    def close(self) -> None: ...


class EmbeddingMaster:
    """Wears the face of a generator's master."""

    def __init__(
        self,
        config: EmbeddingConfig,
        executor: Executor,
        *,
        step_clock: StepClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._queue = EmbeddingQueue(config)
        self._executor = executor
        self._clock = step_clock
        self._monotonic = monotonic
        self._timing = StepTimePredictor()
        self._failed_steps = FailedSteps()
        self._step = 0
        self._seconds = 0.0  # of the last step
        self._accepted: list[int] = []
        self._finished: list[Finished] = []
        self._embeddings: list[Embedding] = []

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._has_news)

    @property
    def seconds_to_next(self) -> float | None:
        return 0.0 if self.has_work else None

    @property
    def wake_fds(self) -> list[int]:
        return []

    @property
    def _has_news(self) -> bool:
        return bool(self._accepted or self._finished)

    def obey(self, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            self._end(self._queue.cancel(message.handles), "cancelled")
        elif refusal := self._queue.submit(message):
            self._finished.append(_refused(message, refusal))
        else:
            self._accepted.append(message.handle)

    def step(self) -> StepOutput | None:
        """News first, so that nobody waits a whole step to hear that he was taken in."""
        if not self._has_news and (batch := self._queue.take_batch()):
            self._run(batch)
        return self._take_output() if self._has_news else None

    def close(self) -> StepOutput | None:
        """End every text and give the device back."""
        self._end(self._queue.cancel_all(), "cancelled")
        self._executor.close()
        return self._take_output() if self._has_news else None

    def _run(self, batch: list[Waiting]) -> None:
        """A step that fails costs its own texts; the process only if it keeps happening."""
        self._step += 1
        num_tokens = sum(len(it.token_ids) for it in batch)
        started = self._monotonic()
        if self._clock is not None:
            self._clock.begin(self._step, started, self._timing.predict(num_tokens))
        try:
            vectors = self._executor.execute([it.token_ids for it in batch])
        except Exception as error:
            self._end(batch, "error", self._failed_steps.failed(error))
        else:
            self._failed_steps.succeeded()
            self._timing.observe(num_tokens, self._monotonic() - started)
            self._take_in(batch, vectors)
        finally:
            self._seconds = self._monotonic() - started
            if self._clock is not None:
                self._clock.end()

    def _take_in(self, batch: list[Waiting], vectors: list[bytes | None]) -> None:
        for it, vector in zip(batch, vectors, strict=True):
            if vector is None:
                self._end([it], "error", NOT_FINITE)
            else:
                self._embeddings.append(Embedding(it.handle, vector))
                self._end([it], "stop")

    def _end(self, texts: list[Waiting], reason: str, message: str = "") -> None:
        for it in texts:
            self._finished.append(Finished(it.handle, reason, len(it.token_ids), 0, 0, message))

    def _take_output(self) -> StepOutput:
        output = StepOutput(
            step=self._step,
            seconds=self._seconds,
            accepted=self._accepted,
            handles=[],
            first_indexes=[],
            token_ids=[],
            logprobs=[],
            finished=self._finished,
            kv_changes=[],
            waiting=len(self._queue),
            running=0,
            free_blocks=0,
            embeddings=self._embeddings,
        )
        self._accepted, self._finished, self._embeddings = [], [], []
        return output


def _refused(message: Submit, refusal: Refusal) -> Finished:
    """What is no fault of the text is a lack of room: another engine may have some."""
    return Finished(
        handle=message.handle,
        reason="error",
        prompt_tokens=len(message.prompt_token_ids),
        completion_tokens=0,
        cached_tokens=0,
        message=refusal.message,
        invalid=refusal.invalid,
        busy=not refusal.invalid,
    )
