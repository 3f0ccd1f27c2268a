"""What waits to be sent to one job executor, as columns; the engine's steps are merged here."""

from collections.abc import Sequence

from deepflow.errors import DeepFlowError, Internal, InvalidRequest, to_proto
from deepflow.v1 import tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.flowserve.messages import Finished

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
        "engine_step",
        "finished",
        "first_indexes",
        "handles",
        "logprobs",
        "token_ids",
    )

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.handles: list[int] = []
        self.first_indexes: list[int] = []
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finished: list[tasks_pb2.TaskFinished] = []
        self.engine_step = 0

    def __bool__(self) -> bool:
        return bool(self.handles or self.finished or self.accepted)

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
        """The batch so far; the columns start anew."""
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
        )
        self.__init__()  # type: ignore[misc]  # fresh lists: the batch copied the old ones
        return batch


def _error_of(end: Finished) -> types.Error | None:
    if end.reason != "error":
        return None
    return to_proto((InvalidRequest if end.invalid else Internal)(end.message))
