"""What happened since the last report, gathered as the columns of a StepOutput."""

from services.task_executor.flowserve.messages import (
    Finished,
    KvChange,
    PromptLogprobs,
    Started,
    StepOutput,
    TopLogprobs,
)
from services.task_executor.flowserve.scheduler.sequence import Sequence


class OutputColumns:
    __slots__ = (
        "accepted",
        "finished",
        "first_indexes",
        "handles",
        "logprobs",
        "preemptions",
        "prompt_logprobs",
        "seconds",
        "started",
        "token_ids",
        "tops",
    )

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.handles: list[int] = []
        self.first_indexes: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finished: list[Finished] = []
        self.tops: TopLogprobs | None = None
        self.prompt_logprobs: list[PromptLogprobs] = []
        self.started: list[Started] = []
        self.preemptions = 0
        self.seconds: float | None = None  # None until a step has run

    @property
    def is_empty(self) -> bool:
        return self.seconds is None and not self.accepted and not self.finished

    def start(self, sequence: Sequence) -> None:
        """It left the queue for the first time."""
        self.started.append(Started(sequence.handle, sequence.cached_tokens or 0))

    def finish(
        self, sequence: Sequence, reason: str, message: str = "", *, invalid: bool = False
    ) -> None:
        self.finished.append(
            Finished(
                handle=sequence.handle,
                reason=reason,
                prompt_tokens=sequence.prompt_length,
                completion_tokens=len(sequence.token_ids) - sequence.prompt_length,
                cached_tokens=sequence.cached_tokens or 0,
                message=message,
                invalid=invalid,
                param=sequence.sampling.grammar_param if invalid else "",
            )
        )

    def add_tops(self, tops: TopLogprobs) -> None:
        """Of the tokens that are added next."""
        first = len(self.token_ids)
        if self.tops is None:
            self.tops = TopLogprobs([], [], [], [])
        self.tops.positions += [first + position for position in tops.positions]
        self.tops.counts += tops.counts
        self.tops.token_ids += tops.token_ids
        self.tops.logprobs += tops.logprobs

    def refuse(
        self,
        handle: int,
        prompt_tokens: int,
        message: str,
        *,
        invalid: bool,
        reason: str = "error",
        param: str = "",
        busy: bool = False,
    ) -> None:
        end = Finished(handle, reason, prompt_tokens, 0, 0, message, invalid, param, busy)
        self.finished.append(end)

    def report(
        self, step: int, kv_changes: list[KvChange], waiting: int, running: int, free_blocks: int
    ) -> StepOutput:
        return StepOutput(
            step=step,
            seconds=self.seconds or 0.0,
            accepted=self.accepted,
            handles=self.handles,
            first_indexes=self.first_indexes,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finished=self.finished,
            kv_changes=kv_changes,
            waiting=waiting,
            running=running,
            free_blocks=free_blocks,
            tops=self.tops,
            prompt_logprobs=self.prompt_logprobs,
            started=self.started,
            preemptions=self.preemptions,
        )
