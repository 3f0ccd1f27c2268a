"""One job on one link: what has arrived of it, and how far it may run ahead of its client."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from deepflow import clock
from deepflow.errors import Cancelled, DeepFlowError, Internal
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.scores import fits, prompt_fits

# Stands for the next index of a choice that has ended: no token carries it.
FINISHED = -1


class Answer(Protocol):
    """Where the tokens of a job go. Called by the link's reader: quick, and never raising."""

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None: ...

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        """About tokens that come next; only where the job asked."""

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        """Before the first token of its choice; only where the job asked."""

    def tool_call(self, delta: jobs.ToolCallDelta) -> None: ...

    def finished(self, choice: jobs.ChoiceFinished) -> None: ...

    def flush(self) -> bool:
        """Pass on what has come; False where that must wait for the client."""


class JobRun:
    """The link pushes into it, one request handler waits on it.

    Tokens flow from the link's reader straight to the client. The handler is woken only for what
    is rare: admission, the end, a failure, a client that reads too slowly.
    """

    __slots__ = (
        "_answer",
        "_credit_due_at",
        "_half_window",
        "_is_touched",
        "_limits",
        "_next_indexes",
        "_scores_prompt",
        "_send",
        "_taken",
        "_waiter",
        "_window",
        "admitted",
        "failure",
        "first_token_at",
        "handle",
        "is_queued",
        "open_choices",
        "vectors",
    )

    def __init__(
        self,
        submit: jobs.SubmitJob,
        choices: int,
        answer: Answer,
        send: Callable[[jobs.JobsRequest], None],
    ) -> None:
        self.handle = submit.handle
        self.open_choices = choices
        self.vectors: list[jobs.JobEmbedding] = []  # those that the handler has not taken
        self.admitted = False
        self.is_queued = False  # it waits for its tenant's turn, which its job executor bounds
        self.failure: DeepFlowError | None = None
        # Monotonic seconds; 0 before the first token.
        self.first_token_at = 0.0
        self._answer = answer
        self._send = send
        self._waiter: asyncio.Future[None] | None = None
        self._is_touched = False
        self._next_indexes = [0] * choices
        self._window = submit.token_window
        self._limits = [submit.token_window] * choices
        self._half_window = max(submit.token_window // 2, 1)
        self._taken = 0
        longest = submit.job.sampling.max_tokens
        is_bounded = submit.job.sampling.HasField("max_tokens")
        never = is_bounded and longest <= submit.token_window
        self._credit_due_at = 2**62 if never else self._half_window
        self._scores_prompt = submit.job.sampling.HasField("prompt_logprobs")

    @property
    def token_count(self) -> int:
        """Of all choices, as far as they have come."""
        return self._taken

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return self.open_choices == 0 or self.failure is not None

    # The link's side.

    def admit(self) -> None:
        self.admitted = True
        self._wake()

    def queue(self) -> None:
        self.is_queued = True
        self._wake()

    def take(self, choice: int, first: int, texts: Sequence[str], ids: Sequence[int]) -> bool:
        """Tokens of one choice, which must continue what came before.

        Answers whether the run is to be flushed at the end of the batch and was not yet.
        """
        indexes, count = self._next_indexes, len(ids)
        if choice >= len(indexes) or indexes[choice] != first or len(texts) != count:
            self.fail(_broken("tokens out of order", choice, first))
            return False
        if first + count > self._limits[choice]:
            self.fail(_broken("more tokens than its window allows", choice, first))
            return False
        indexes[choice] = first + count
        self._taken += count
        self._answer.tokens(choice, texts, ids)
        return self._touch()

    def describe(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        """What a client that asked sees of the tokens that `take` gets next."""
        if not self._is_open(choice) or not fits(details, logprobs):
            self.fail(_broken("details that do not fit their tokens", choice, 0))
            return
        self._answer.details(choice, details, logprobs)

    def show_prompt(self, prompt: jobs.ChoicePrompt) -> bool:
        """The prompt of one choice, before anything else of it; answers as `take` does."""
        choice, unscored = prompt.choice_index, len(prompt.token_ids) - 1 - len(prompt.logprobs)
        in_order = self._is_open(choice) and self._next_indexes[choice] == 0
        if not in_order or not prompt_fits(prompt) or (self._scores_prompt and unscored):
            self.fail(_broken("a prompt out of order or incomplete", choice, 0))
            return False
        self._answer.prompt(prompt)
        return self._touch()

    def call_tool(self, delta: jobs.ToolCallDelta) -> bool:
        """A piece of a call; answers as `take` does."""
        if not self._is_open(delta.choice_index):
            self.fail(_broken("a call of no choice", delta.choice_index, 0))
            return False
        self._answer.tool_call(delta)
        return self._touch()

    def take_vector(self, embedding: jobs.JobEmbedding) -> None:
        """One of a job of embeddings, whose every choice is one vector."""
        index = embedding.index
        if not self._is_open(index):
            self.fail(_broken("a vector that nobody waits for", index, 0))
            return
        self._next_indexes[index] = FINISHED
        self.open_choices -= 1
        self.vectors.append(embedding)
        self._wake()

    def finish(self, finished: jobs.ChoiceFinished) -> bool:
        """One choice has ended; answers as `take` does."""
        choice, indexes = finished.choice_index, self._next_indexes
        if choice >= len(indexes) or indexes[choice] == FINISHED:
            self.fail(_broken("an end that nothing began", choice, 0))
            return False
        indexes[choice] = FINISHED
        self.open_choices -= 1
        self._answer.finished(finished)
        self._wake()
        return self._touch()

    def flush(self) -> None:
        """The batch is complete. What ends an answer is left to the handler, in one piece."""
        self._is_touched = False
        if not self.first_token_at and self._taken:
            self.first_token_at = clock.monotonic()
        if self.open_choices == 0 or self.failure is not None:
            return
        if not self._answer.flush():
            self._wake()
        elif self._taken >= self._credit_due_at:
            self.passed_on()

    def _is_open(self, choice: int) -> bool:
        return choice < len(self._next_indexes) and self._next_indexes[choice] != FINISHED

    def _touch(self) -> bool:
        is_first, self._is_touched = not self._is_touched, True
        return is_first

    def fail(self, failure: DeepFlowError) -> None:
        """The first failure counts; an answer that is complete cannot fail any more."""
        if not self.is_over:
            self.failure = failure
            self._wake()

    def leave(self) -> None:
        self.fail(Cancelled("the client closed the connection"))

    # The handler's side.

    async def admission(self, seconds_max: float) -> None:
        """Return when the job was admitted; raises what refused it, or TimeoutError.

        The time bounds the job executor's own work: while a job waits for its turn, only its
        deadline and the job executor end it.
        """
        async with asyncio.timeout(seconds_max) as limit:
            while not self.admitted and not self.is_over:
                if self.is_queued:
                    limit.reschedule(None)
                await self.arrival()
        if self.failure is not None:
            raise self.failure

    async def arrival(self) -> None:
        """Wait until something new has come."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def passed_on(self) -> None:
        """Everything that came is with the client: let the job run on."""
        if self._taken < self._credit_due_at or self.is_over:
            return
        self._credit_due_at = self._taken + self._half_window
        for choice, index in enumerate(self._next_indexes):
            if index + self._window - self._limits[choice] >= self._half_window:
                self._limits[choice] = index + self._window
                credit = jobs.JobCredit(
                    handle=self.handle, choice_index=choice, delivered_tokens=index
                )
                self._send(jobs.JobsRequest(credit=credit))

    def _wake(self) -> None:
        if (waiter := self._waiter) is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


def _broken(what: str, choice: int, first: int) -> Internal:
    return Internal(
        f"the job executor sent {what} (choice {choice}, index {first})", reason="broken_stream"
    )
