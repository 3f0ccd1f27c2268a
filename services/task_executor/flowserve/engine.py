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
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import (
    Cancel,
    Load,
    PromptLogprobs,
    StepOutput,
    Submit,
    TopLogprobs,
)
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.step_trace import StepTrace
from services.task_executor.flowserve.tiers.build import Tiers


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
    # Of each token the likeliest alternatives and their logprobs, where logprobs were asked for.
    tops: list[dict[int, float]] = field(default_factory=list)
    # Of prompt tokens 1, 2, …, where prompt_logprobs were asked for.
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_ranks: list[int] = field(default_factory=list)
    prompt_tops: list[dict[int, float]] = field(default_factory=list)


class FlowServe:
    def __init__(
        self, source: str | Path, device: str = "cpu", dtype: str = "", **settings: int
    ) -> None:
        """An empty dtype is what is best on the device; `settings` are EngineConfig fields.

        Raises ValueError where the model cannot be held.
        """
        name = str(source)
        load = Load(name, name, device, model_revision=name, settings=settings, dtype=dtype)
        self._build(load)

    @classmethod
    def loaded(cls, load: Load) -> "FlowServe":
        """With all that an engine can be asked for. Raises ValueError."""
        engine = cls.__new__(cls)
        engine._build(load)
        return engine

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
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams],
    ) -> list[Generation]:
        """One answer for each prompt, in order; all prompts share the batch.

        `sampling` is for all of them, or one for each.
        """
        if isinstance(sampling, SamplingParams):
            sampling = [sampling] * len(prompts)
        pairs = list(zip(prompts, sampling, strict=True))
        handles = [self._submit(prompt, own) for prompt, own in pairs]
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

    def record(self) -> StepTrace:
        """What happens when, from now on."""
        self._master.trace = StepTrace()
        return self._master.trace

    def close(self) -> None:
        self._master.close()

    def _build(self, load: Load) -> None:
        # Late: a program that only names this class imports nothing heavy.
        from services.task_executor.flowserve.executor.factory import build_executor

        built = build_executor(load, _unreported)
        self._hold(built.config, built.executor, built.grammars, built.tiers)

    def _hold(
        self,
        config: EngineConfig,
        executor: Executor,
        grammars: Grammars | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self._master = Master(config, executor, grammars=grammars, tiers=tiers)
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
        if output is None:
            is_awaited = self._master.has_work or self._master.num_held
            assert is_awaited, "an answer is awaited, but the engine has no work"
            wait_readable(self._master.wake_fds, self._master.seconds_to_next)
            return
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
        if output.tops is not None:
            self._take_tops(output, output.tops)
        for report in output.prompt_logprobs:
            self._take_prompt_logprobs(report)

    def _take_tops(self, output: StepOutput, tops: TopLogprobs) -> None:
        first = 0
        for position, count in zip(tops.positions, tops.counts, strict=True):
            end = first + count
            top = dict(zip(tops.token_ids[first:end], tops.logprobs[first:end], strict=True))
            self._answers[output.handles[position]].tops.append(top)
            first = end

    def _take_prompt_logprobs(self, report: PromptLogprobs) -> None:
        answer = self._answers[report.handle]
        answer.prompt_logprobs += report.logprobs
        answer.prompt_ranks += report.ranks
        width = len(report.top_token_ids) // len(report.logprobs)
        for index in range(len(report.logprobs) if width else 0):
            part = slice(index * width, (index + 1) * width)
            ids, logprobs = report.top_token_ids[part], report.top_logprobs[part]
            answer.prompt_tops.append(dict(zip(ids, logprobs, strict=True)))


def _unreported(step: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()
