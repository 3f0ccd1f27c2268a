"""FlowServe alone, as a library: no shell, no cluster, in the caller's process.

with FlowServe("path/to/model", device="cpu") as engine:
    answers = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=16))
"""

import contextlib
import itertools
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.base import Executor
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Cancel, Load, StepOutput, Submit


class GenerationError(RuntimeError):
    """The engine could not give this one answer; the others are not touched by it."""


@dataclass(slots=True)
class Generation:
    """One answer; `finish_reason` is stop, length or error, and empty while it grows."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""
    message: str = ""  # what was wrong, where finish_reason is error
    cached_tokens: int = 0


class FlowServe:
    def __init__(self, source: str | Path, device: str = "cpu", **settings: int) -> None:
        """`settings` are EngineConfig fields. Raises ValueError where the model cannot be held."""
        # Late: a program that only names this class imports nothing heavy.
        from services.task_executor.flowserve.executor.factory import build_executor

        name = str(source)
        load = Load(name, name, device, model_revision=name, settings=settings)
        self._hold(*build_executor(load, _unreported))

    @classmethod
    def over(cls, config: EngineConfig, executor: Executor) -> "FlowServe":
        """The engine over an executor that the caller has built."""
        engine = cls.__new__(cls)
        engine._hold(config, executor)
        return engine

    def __enter__(self) -> "FlowServe":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def config(self) -> EngineConfig:
        return self._master.config

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[Generation]:
        """One answer for each prompt, in order; all prompts share the batch."""
        handles = [self._submit(prompt, sampling) for prompt in prompts]
        while any(not self._answers[handle].finish_reason for handle in handles):
            self._step()
        return [self._answers.pop(handle) for handle in handles]

    def stream(
        self, prompt: Sequence[int], sampling: SamplingParams
    ) -> Generator[tuple[int, float], None, None]:
        """Each token and its logprob as it is drawn; several streams may be read in turn.

        Closing the iterator early cancels the sequence. Raises GenerationError.
        """
        handle = self._submit(prompt, sampling)
        answer = self._answers[handle]
        try:
            for index in itertools.count():
                while index == len(answer.token_ids) and not answer.finish_reason:
                    self._step()
                if index == len(answer.token_ids):
                    break
                yield answer.token_ids[index], answer.logprobs[index]
        finally:
            self._abandon(handle)
        if answer.finish_reason == "error":
            raise GenerationError(answer.message)

    def close(self) -> None:
        self._master.close()

    def _hold(self, config: EngineConfig, executor: Executor) -> None:
        self._master = Master(config, executor)
        self._handles = itertools.count()
        self._answers: dict[int, Generation] = {}

    def _submit(self, prompt: Sequence[int], sampling: SamplingParams) -> int:
        handle = next(self._handles)
        self._answers[handle] = Generation()
        self._master.obey(Submit(handle, list(prompt), sampling))
        return handle

    def _abandon(self, handle: int) -> None:
        if not self._answers.pop(handle).finish_reason:
            self._master.obey(Cancel([handle]))

    def _step(self) -> None:
        output = self._master.step()
        assert output is not None, "an answer is awaited, but the engine has no work"
        self._take_tokens(output)
        for finished in output.finished:
            if answer := self._answers.get(finished.handle):
                answer.finish_reason, answer.message = finished.reason, finished.message
                answer.cached_tokens = finished.cached_tokens

    def _take_tokens(self, output: StepOutput) -> None:
        columns = zip(output.handles, output.token_ids, output.logprobs, strict=True)
        for handle, token, logprob in columns:
            answer = self._answers[handle]
            answer.token_ids.append(token)
            answer.logprobs.append(logprob)


def _unreported(step: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()
