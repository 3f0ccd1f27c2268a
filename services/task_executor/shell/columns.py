"""What waits to be sent to one job executor, as columns; the engine's steps are merged here."""

from collections.abc import Sequence

from deepflow.errors import DeepFlowError, Internal, InvalidRequest, Unavailable, to_proto
from deepflow.v1 import tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.flowserve.messages import Finished, PromptLogprobs, TopLogprobs
from services.task_executor.shell.running_task import Beginning

RETRY_SECONDS = 1.0
# Scores of prompt tokens in one batch; each takes up to ten bytes of a message.
SCORES_MAX = 1 << 20

_REASONS = {
    "stop": types.FINISH_REASON_STOP,
    "length": types.FINISH_REASON_LENGTH,
    "cancelled": types.FINISH_REASON_CANCELLED,
    "error": types.FINISH_REASON_ERROR,
}


class Columns:
    """One TaskTokenBatch in the making. A slow peer makes it longer, never more of them."""

    __slots__ = (
        "accepted",
        "embeddings",
        "engine_step",
        "finished",
        "first_indexes",
        "handles",
        "logprobs",
        "prompt_logprobs",
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
        self.finished: list[tasks_pb2.TaskFinished] = []
        self.embeddings: list[tasks_pb2.TaskEmbedding] = []
        self.tops = TopLogprobs([], [], [], [])
        self.prompt_logprobs: list[tasks_pb2.PromptLogprobs] = []
        self.started: list[tasks_pb2.TaskStarted] = []
        self.engine_step = 0

    def __bool__(self) -> bool:
        return bool(self.handles or self.finished or self.accepted or self.prompt_logprobs)

    def add_step(
        self,
        step: int,
        handles: Sequence[int],
        first_indexes: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Sequence[float],
    ) -> None:
        """One token per handle."""
        self.engine_step = step
        self.handles += handles
        self.first_indexes += first_indexes
        self.token_ids += token_ids
        self.logprobs += logprobs

    def add_tops(self, tops: TopLogprobs) -> None:
        """Of the tokens that `add_step` adds next."""
        first = len(self.token_ids)
        self.tops.positions += [first + position for position in tops.positions]
        self.tops.counts += tops.counts
        self.tops.token_ids += tops.token_ids
        self.tops.logprobs += tops.logprobs

    def add_prompt_logprobs(self, handle: int, report: PromptLogprobs) -> None:
        self.prompt_logprobs.append(
            tasks_pb2.PromptLogprobs(
                handle=handle,
                first_position=report.first_position,
                logprobs=report.logprobs,
                ranks=report.ranks,
                top_token_ids=report.top_token_ids,
                top_logprobs=report.top_logprobs,
            )
        )

    def add_embedding(self, handle: int, values: bytes) -> None:
        """Before the end of its task."""
        self.embeddings.append(tasks_pb2.TaskEmbedding(handle=handle, values=values))

    def add_started(self, handle: int, beginning: Beginning) -> None:
        """Before its first token."""
        self.started.append(
            tasks_pb2.TaskStarted(
                handle=handle,
                queued_milliseconds=beginning.queued_seconds * 1000,
                prefill_milliseconds=beginning.prefill_seconds * 1000,
                cached_tokens=beginning.cached_tokens,
            )
        )

    def add_finished(self, handle: int, end: Finished) -> None:
        self.finished.append(
            tasks_pb2.TaskFinished(
                handle=handle,
                reason=_REASONS[end.reason],
                usage=types.Usage(
                    prompt_tokens=end.prompt_tokens,
                    completion_tokens=end.completion_tokens,
                    cached_tokens=end.cached_tokens,
                ),
                error=_error_of(end),
            )
        )

    def add_failure(self, handle: int, error: DeepFlowError) -> None:
        """The task ended without the engine's word."""
        self.finished.append(
            tasks_pb2.TaskFinished(
                handle=handle, reason=types.FINISH_REASON_ERROR, error=to_proto(error)
            )
        )

    def take(self, te_incarnation: int) -> tasks_pb2.TaskTokenBatch:
        """The batch so far; the columns start anew.

        Where it has too many reports on prompts, the first of them: nothing may go before those.
        """
        if (fitting := self._fitting_reports()) < len(self.prompt_logprobs):
            return self._take_reports(te_incarnation, fitting)
        batch = tasks_pb2.TaskTokenBatch(
            te_incarnation=te_incarnation,
            engine_step=self.engine_step,
            accepted_handles=self.accepted,
            handles=self.handles,
            first_token_indexes=self.first_indexes,
            token_counts=[1] * len(self.handles),
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finished=self.finished,
            top_positions=self.tops.positions,
            top_counts=self.tops.counts,
            top_token_ids=self.tops.token_ids,
            top_logprobs=self.tops.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            embeddings=self.embeddings,
            started=self.started,
        )
        self.__init__()  # type: ignore[misc]  # fresh lists: the batch copied the old ones
        return batch

    def _fitting_reports(self) -> int:
        """How many of the reports one batch may hold; at least one."""
        scores = 0
        for index, report in enumerate(self.prompt_logprobs):
            scores += len(report.logprobs) + len(report.top_logprobs)
            if scores > SCORES_MAX:
                return max(index, 1)
        return len(self.prompt_logprobs)

    def _take_reports(self, te_incarnation: int, count: int) -> tasks_pb2.TaskTokenBatch:
        batch = tasks_pb2.TaskTokenBatch(
            te_incarnation=te_incarnation,
            engine_step=self.engine_step,
            accepted_handles=self.accepted,
            prompt_logprobs=self.prompt_logprobs[:count],
        )
        self.accepted = []
        self.prompt_logprobs = self.prompt_logprobs[count:]
        return batch


def _error_of(end: Finished) -> types.Error | None:
    if end.reason != "error":
        return None
    if end.invalid and end.param:
        error = InvalidRequest(end.message, param=end.param, reason="invalid_grammar")
        return to_proto(error)
    if end.busy:
        return to_proto(Unavailable(end.message, retry_after_seconds=RETRY_SECONDS))
    return to_proto((InvalidRequest if end.invalid else Internal)(end.message))
