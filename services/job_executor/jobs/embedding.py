"""One job of embeddings: every prompt is a task of its own, and its vector goes straight on.

Prompts enter the task executors a window at a time, and a vector that waits for the gateway keeps
its place in the window: so a job of thousands delays nobody, and holds little here.
"""

import logging
from collections import deque
from collections.abc import Callable

from deepflow.errors import (
    Cancelled,
    DeepFlowError,
    RateLimited,
    Unavailable,
    to_proto,
)
from deepflow.ids import new_id
from deepflow.v1 import jobs_pb2, tasks_pb2
from services.job_executor.jobs.embedding_input import check_request, prompts
from services.job_executor.jobs.life import JobLife
from services.job_executor.jobs.outbox import Columns, Outbox
from services.job_executor.jobs.parts import Parts
from services.job_executor.jobs.vector import VectorTask, shorten
from services.job_executor.scheduling.policy import RequestFeatures
from services.job_executor.scheduling.ticket import Ticket, rank_of, weight_of

log = logging.getLogger(__name__)


class EmbeddingJob:
    """Over when every prompt's vector was passed on, or with a refusal at any time."""

    def __init__(
        self,
        submit: jobs_pb2.SubmitJob,
        outbox: Outbox,
        parts: Parts,
        on_end: Callable[["EmbeddingJob"], None],
        *,
        gateway_id: str = "",
    ) -> None:
        self.handle = submit.handle
        self._request = submit.job
        self._outbox = outbox
        self._parts = parts
        self._on_end = on_end
        self._waiting: deque[VectorTask] = deque()
        self._running: set[VectorTask] = set()  # or waiting for their turn
        self._ready: list[jobs_pb2.JobEmbedding] = []  # vectors that the stream has not taken
        self._unaccepted: set[VectorTask] = set()  # before the admission, of those that run
        self._num_left = 0  # vectors that the stream has yet to take
        self._is_offered = False
        self._life = JobLife(submit, outbox, parts, "embedding", gateway_id, self._fail)

    @property
    def is_admitted(self) -> bool:
        return self._life.is_admitted

    def start(self) -> None:
        """Begin; all that follows is told through the outbox."""
        self._life.start(self._prepare)

    def cancel(self) -> None:
        """The gateway wants no more: free the work at once."""
        self._fail(Cancelled("the job was cancelled"))

    def credit(self, choice_index: int, delivered_tokens: int) -> None:
        """Tokens alone are credited, and here are none."""

    def drop(self) -> None:
        """The stream is gone: free everything, tell nobody."""
        self._life.lost_its_gateway()
        self._close()

    # ── from prompts to tasks ────────────────────────────────────────────────────────────────

    async def _prepare(self) -> None:
        parts, request = self._parts, self._request
        model = await parts.library.get(request.model)
        check_request(request.embedding, model, parts.embeddings_per_job_max)
        await parts.links.settle(model.name)
        tokens_max = parts.tokens_max(model)
        token_ids = await prompts(request.embedding, model, parts.pool, tokens_max)
        self._waiting.extend(VectorTask(self, i, ids) for i, ids in enumerate(token_ids))
        self._num_left = len(token_ids)
        self._life.arrived(sum(map(len, token_ids)))
        self._ask_for_places()
        self._life.wait_if_due()

    def _ask_for_places(self) -> None:
        """For as many as the window takes."""
        request = self._request
        weight, rank = weight_of(request.tenant_weight), rank_of(request.context)
        room = self._parts.embeddings_in_flight_max - len(self._running) - len(self._ready)
        for _ in range(min(room, len(self._waiting))):
            if self._life.is_over:
                return
            task = self._waiting.popleft()
            self._running.add(task)
            ticket = Ticket(task, request.model, request.context.tenant, weight, rank)
            task.ask(self._parts.room, ticket)

    def _place(self, task: VectorTask, excluded: frozenset[str] = frozenset()) -> None:
        parts = self._parts
        group = parts.links.group_view(self._request.model, excluded)
        features = RequestFeatures(self._request.model, len(task.prompt), max_tokens=0)
        placement = parts.policy.choose(features, group)
        task.place(parts.links.get(placement.task_executor_id), self._message(task))

    def _message(self, task: VectorTask) -> tasks_pb2.Task:
        request = self._request
        message = tasks_pb2.Task(
            id=new_id("task"),
            job_id=request.id,
            attempt_epoch=request.attempt_epoch + task.attempt,
            context=request.context,
            model=request.model,
            choice_index=task.index,
            prompt_token_ids=task.prompt,
            embed=True,
        )
        message.context.trace.CopyFrom(self._life.span.context)
        return message

    # ── what its tasks tell ──────────────────────────────────────────────────────────────────

    def task_called(self, task: VectorTask) -> None:
        self._life.called()
        if not self.is_admitted:
            self._unaccepted.add(task)
        try:
            self._place(task)
        except DeepFlowError as error:
            self._fail(error)
        except Exception:  # who calls has others to call
            self._fail(self._life.our_mistake())

    def task_accepted(self, task: VectorTask) -> None:
        self._unaccepted.discard(task)
        if self._unaccepted or self.is_admitted or self._life.is_over:
            return
        self._life.admitted()
        self._offer_if_due()

    def task_done(self, task: VectorTask, values: bytes) -> None:
        """Its vector is here: nothing of the task is left anywhere else."""
        self._running.discard(task)
        if dimensions := self._request.embedding.dimensions:
            values = shorten(values, dimensions)
        self._ready.append(
            jobs_pb2.JobEmbedding(
                handle=self.handle,
                index=task.index,
                values=values,
                prompt_tokens=len(task.prompt),
            )
        )
        self.task_accepted(task)
        self._offer_if_due()

    def task_failed(self, task: VectorTask, error: DeepFlowError, where: str) -> None:
        """A vector may be computed anew anywhere; what cannot be repeated ends the job."""
        if self._life.is_over:
            return
        has_attempts = task.attempt + 1 < self._parts.placement_attempts_max
        if has_attempts and isinstance(error, Unavailable | RateLimited):
            task.attempt += 1
            if not self.is_admitted:
                self._unaccepted.add(task)
            self._life.place_anew(
                lambda excluded: self._place(task, excluded), self._fail, error, where
            )
            return
        self._fail(error)

    # ── what the gateway gets ────────────────────────────────────────────────────────────────

    def drain_into(self, columns: Columns) -> None:
        """The stream takes what is ready, and makes room in the window with it."""
        self._is_offered = False
        if self._life.is_over:
            return
        columns.embeddings += self._ready
        self._num_left -= len(self._ready)
        self._ready = []
        if not self._num_left:
            self._close()
            return
        self._ask_for_places()

    def _offer_if_due(self) -> None:
        if self._ready and self.is_admitted and not self._is_offered and not self._life.is_over:
            self._is_offered = True
            self._outbox.offer(self)

    # ── how it ends ──────────────────────────────────────────────────────────────────────────

    def _fail(self, error: DeepFlowError) -> None:
        if self._life.is_over:
            return
        self._life.failed(error)
        refused = jobs_pb2.JobRefused(handle=self.handle, error=to_proto(error))
        self._outbox.answer(jobs_pb2.JobsResponse(refused=refused))
        self._close()

    def _close(self) -> None:
        if self._life.is_over:
            return
        self._life.end()
        for task in self._running:
            task.release()
        self._on_end(self)
