"""One job of embeddings: every prompt is a task of its own, and its vector goes straight on.

Prompts enter the task executors a window at a time, and a vector that waits for the gateway keeps
its place in the window: so a job of thousands delays nobody, and holds little here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from deepflow import clock
from deepflow.errors import (
    Cancelled,
    DeadlineExceeded,
    DeepFlowError,
    Internal,
    RateLimited,
    Unavailable,
    to_proto,
)
from deepflow.ids import new_id
from deepflow.v1 import jobs_pb2, tasks_pb2
from services.job_executor import metrics
from services.job_executor.jobs.embedding_input import check_request, prompts
from services.job_executor.jobs.outbox import Columns, Outbox
from services.job_executor.jobs.parts import Parts
from services.job_executor.jobs.vector import VectorTask, shorten
from services.job_executor.scheduling.policy import RequestFeatures
from services.job_executor.scheduling.ticket import Ticket, rank_of, weight_of
from services.job_executor.scheduling.waiting_room import Arrival

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
        self._is_called = False  # it was the turn of one of its tasks
        self._num_left = 0  # vectors that the stream has yet to take
        self._is_offered = False
        self.is_admitted = False
        self._is_over = False
        self._story = parts.stories.begin(submit.job, "embedding", gateway_id)
        self._outcome = "ok"
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None  # while all of it waits for its turn
        self._preparing: asyncio.Task[None] | None = None
        self._arrival: Arrival | None = None
        self._span = parts.tracing.start(
            "je.job",
            submit.job.context.trace,
            request_id=submit.job.context.request_id,
            job_id=submit.job.id,
            model=submit.job.model,
        )

    def start(self) -> None:
        """Begin; all that follows is told through the outbox."""
        self._arm_deadline()
        self._preparing = asyncio.create_task(self._prepare())
        arrival = self._arrival = self._parts.room.arriving(self._request.context.tenant)
        self._preparing.add_done_callback(lambda _: arrival.end())

    def cancel(self) -> None:
        """The gateway wants no more: free the work at once."""
        self._fail(Cancelled("the job was cancelled"))

    def credit(self, choice_index: int, delivered_tokens: int) -> None:
        """Tokens alone are credited, and here are none."""

    def drop(self) -> None:
        """The stream is gone: free everything, tell nobody."""
        self._outcome = "gateway_lost"
        self._close()

    @property
    def _names(self) -> dict[str, str]:
        """What every log line about this job carries, whoever's turn of the loop it is."""
        return {"request_id": self._request.context.request_id, "job_id": self._request.id}

    # ── from prompts to tasks ────────────────────────────────────────────────────────────────

    async def _prepare(self) -> None:
        parts, request = self._parts, self._request
        try:
            model = await parts.library.get(request.model)
            check_request(request.embedding, model, parts.embeddings_per_job_max)
            await parts.links.settle(model.name)
            tokens_max = parts.tokens_max(model)
            token_ids = await prompts(request.embedding, model, parts.pool, tokens_max)
            self._story.prompt_tokens = sum(map(len, token_ids))
            self._span.set(prompt_tokens=self._story.prompt_tokens)
            self._waiting.extend(VectorTask(self, i, ids) for i, ids in enumerate(token_ids))
            self._num_left = len(token_ids)
            parts.links.group_view(model.name)
            parts.room.check(request.context.tenant)
            if self._arrival is not None:
                self._arrival.end()
            self._ask_for_places()
            self._wait_if_due()
        except DeepFlowError as error:
            self._fail(error)
        except Exception:  # the top of one job: it fails alone, whatever our mistake was
            log.exception("job failed", extra=self._names)
            self._fail(Internal("the job executor failed on this request"))

    def _ask_for_places(self) -> None:
        """For as many as the window takes."""
        request = self._request
        weight, rank = weight_of(request.tenant_weight), rank_of(request.context)
        room = self._parts.embeddings_in_flight_max - len(self._running) - len(self._ready)
        for _ in range(min(room, len(self._waiting))):
            if self._is_over:
                return
            task = self._waiting.popleft()
            self._running.add(task)
            ticket = Ticket(task, request.model, request.context.tenant, weight, rank)
            task.ask(self._parts.room, ticket)

    def _wait_if_due(self) -> None:
        if self._is_called or self._is_over:
            return
        queued = jobs_pb2.JobQueued(handle=self.handle)
        self._outbox.answer(jobs_pb2.JobsResponse(queued=queued))
        self._span.event("queued")
        loop, seconds = asyncio.get_running_loop(), self._parts.room.limits.seconds_max
        self._patience = loop.call_later(seconds, self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        self._fail(self._parts.room.waited_too_long())

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

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
        message.context.trace.CopyFrom(self._span.context)
        return message

    # ── what its tasks tell ──────────────────────────────────────────────────────────────────

    def task_called(self, task: VectorTask) -> None:
        self._is_called = True
        self._stop_patience()
        if not self.is_admitted:
            self._unaccepted.add(task)
        try:
            self._place(task)
        except DeepFlowError as error:
            self._fail(error)
        except Exception:  # who calls has others to call
            log.exception("job failed", extra=self._names)
            self._fail(Internal("the job executor failed on this request"))

    def task_accepted(self, task: VectorTask) -> None:
        self._unaccepted.discard(task)
        if self._unaccepted or self.is_admitted or self._is_over:
            return
        self.is_admitted = True
        self._story.admitted()
        admitted = jobs_pb2.JobAdmitted(handle=self.handle, job_executor_id=self._parts.id)
        self._outbox.answer(jobs_pb2.JobsResponse(admitted=admitted))
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
        if self._is_over:
            return
        has_attempts = task.attempt + 1 < self._parts.placement_attempts_max
        if has_attempts and isinstance(error, Unavailable | RateLimited):
            task.attempt += 1
            if not self.is_admitted:
                self._unaccepted.add(task)
            try:
                self._place(task, frozenset((where,)))
            except Unavailable:
                log.debug("nobody else can take the task")
            else:
                metrics.TASKS_REPLACED.inc()
                log.info("placed a task anew: %s", error, extra=self._names)
                return
        self._fail(error)

    # ── what the gateway gets ────────────────────────────────────────────────────────────────

    def drain_into(self, columns: Columns) -> None:
        """The stream takes what is ready, and makes room in the window with it."""
        self._is_offered = False
        if self._is_over:
            return
        columns.embeddings += self._ready
        self._num_left -= len(self._ready)
        self._ready = []
        if not self._num_left:
            self._close()
            return
        self._ask_for_places()

    def _offer_if_due(self) -> None:
        if self._ready and self.is_admitted and not self._is_offered and not self._is_over:
            self._is_offered = True
            self._outbox.offer(self)

    # ── how it ends ──────────────────────────────────────────────────────────────────────────

    def _fail(self, error: DeepFlowError) -> None:
        if self._is_over:
            return
        self._outcome = error.reason
        self._story.failed(error)
        self._span.fail(error.message)
        log.info("job ends early: %s", error, extra=self._names)
        refused = jobs_pb2.JobRefused(handle=self.handle, error=to_proto(error))
        self._outbox.answer(jobs_pb2.JobsResponse(refused=refused))
        self._close()

    def _close(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._stop_patience()
        if self._preparing is not None and self._preparing is not asyncio.current_task():
            self._preparing.cancel()
        for task in self._running:
            task.release()
        self._span.end()
        self._story.ended(self._outcome)
        metrics.JOBS.labels("embedding", self._outcome).inc()
        self._on_end(self)

    def _arm_deadline(self) -> None:
        unix_ms = self._request.context.deadline_unix_ms
        if unix_ms:
            seconds = max(0.0, (unix_ms - clock.unix_ms()) / 1000)
            error = DeadlineExceeded("the request's deadline has passed")
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._fail, error)
