"""What waits to be sent to one gateway. The choices' logs are the queue: nothing is copied twice.

A gateway that reads slowly finds more tokens in its next message, never more messages.
"""

import asyncio
from typing import Protocol

from deepflow.v1 import jobs_pb2

# A message that carries more than this of details and prompts is closed.
EXTRA_BYTES_MAX = 4 * 1024 * 1024


class Columns:
    """One JobTokenBatch in the making."""

    __slots__ = (
        "choice_indexes",
        "details",
        "embeddings",
        "finished",
        "first_indexes",
        "handles",
        "incarnations",
        "logprobs",
        "num_extra_bytes",
        "prompts",
        "texts",
        "token_counts",
        "token_ids",
        "tool_calls",
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
        self.details: list[jobs_pb2.TokenDetails] = []
        self.prompts: list[jobs_pb2.ChoicePrompt] = []
        self.tool_calls: list[jobs_pb2.ToolCallDelta] = []
        self.embeddings: list[jobs_pb2.JobEmbedding] = []  # each a message of its own
        self.num_extra_bytes = 0  # of details and prompts: all else is small

    def add_details(self, details: jobs_pb2.TokenDetails) -> None:
        self.details.append(details)
        self.num_extra_bytes += details.ByteSize()

    def add_prompt(self, prompt: jobs_pb2.ChoicePrompt) -> None:
        self.prompts.append(prompt)
        self.num_extra_bytes += prompt.ByteSize()

    def to_responses(self) -> list[jobs_pb2.JobsResponse]:
        """Nothing to send is no message."""
        responses = [self._tokens()] if self.handles or self.finished else []
        return responses + [jobs_pb2.JobsResponse(embedding=it) for it in self.embeddings]

    def _tokens(self) -> jobs_pb2.JobsResponse:
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
                details=self.details,
                prompts=self.prompts,
                tool_calls=self.tool_calls,
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
            if columns.num_extra_bytes > EXTRA_BYTES_MAX:
                responses += columns.to_responses()
                columns = Columns()
        return responses + columns.to_responses()
