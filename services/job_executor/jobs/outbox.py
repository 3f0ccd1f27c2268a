"""What waits to be sent to one gateway. The choices' logs are the queue: nothing is copied twice.

A gateway that reads slowly finds more tokens in its next message, never more messages.
"""

import asyncio
from typing import Protocol

from deepflow.v1 import jobs_pb2


class Columns:
    """One JobTokenBatch in the making."""

    __slots__ = (
        "choice_indexes",
        "finished",
        "first_indexes",
        "handles",
        "incarnations",
        "logprobs",
        "texts",
        "token_counts",
        "token_ids",
    )

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.choice_indexes: list[int] = []
        self.first_indexes: list[int] = []
        self.token_counts: list[int] = []
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[float] = []
        self.incarnations: list[int] = []
        self.finished: list[jobs_pb2.ChoiceFinished] = []

    def to_response(self) -> jobs_pb2.JobsResponse:
        return jobs_pb2.JobsResponse(
            tokens=jobs_pb2.JobTokenBatch(
                handles=self.handles,
                choice_indexes=self.choice_indexes,
                first_token_indexes=self.first_indexes,
                token_counts=self.token_counts,
                token_ids=self.token_ids,
                texts=self.texts,
                logprobs=self.logprobs,
                finished=self.finished,
                te_incarnations=self.incarnations,
            )
        )


class Source(Protocol):
    """A choice with something to send."""

    def drain_into(self, columns: Columns) -> None:
        """Add what may be sent now; called once for each time it was offered."""


class Outbox:
    """Filled by jobs, emptied by the stream's one writer."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self._answers: list[jobs_pb2.JobsResponse] = []
        self._sources: list[Source] = []

    def answer(self, response: jobs_pb2.JobsResponse) -> None:
        """Admissions and refusals: sent before any token that is offered later."""
        self._answers.append(response)
        self.wake.set()

    def offer(self, source: Source) -> None:
        if not self._sources:
            self.wake.set()
        self._sources.append(source)

    def take(self) -> list[jobs_pb2.JobsResponse]:
        """Everything that may be sent now, in order."""
        responses, self._answers = self._answers, []
        sources, self._sources = self._sources, []
        columns = Columns()
        for source in sources:
            source.drain_into(columns)
        if columns.handles or columns.finished:
            responses.append(columns.to_response())
        return responses
