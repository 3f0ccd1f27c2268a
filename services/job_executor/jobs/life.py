"""What surrounds the work of every job, whatever it makes: its time, its turn, its story."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from deepflow import clock
from deepflow.errors import DeadlineExceeded, DeepFlowError, Internal, Unavailable
from deepflow.v1 import jobs_pb2
from services.job_executor import metrics
from services.job_executor.jobs.outbox import Outbox
from services.job_executor.jobs.parts import Parts
from services.job_executor.scheduling.waiting_room import Arrival

log = logging.getLogger(__name__)


class JobLife:
    """Begins with `start` and is over once; what its timers say goes to `on_error`."""

    def __init__(
        self,
        submit: jobs_pb2.SubmitJob,
        outbox: Outbox,
        parts: Parts,
        kind: str,
        gateway_id: str,
        on_error: Callable[[DeepFlowError], None],
    ) -> None:
        self._handle = submit.handle
        self._request = submit.job
        self._outbox = outbox
        self._parts = parts
        self._kind = kind
        self._on_error = on_error
        self._outcome = "ok"
        self._is_called = False  # it was the turn of one of its tasks
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None  # while all of it waits for its turn
        self._preparing: asyncio.Task[None] | None = None
        self._arrival: Arrival | None = None
        self._to_be_placed: set[asyncio.Task[None]] = set()
        self.is_admitted = False
        self.is_over = False
        self.story = parts.stories.begin(submit.job, kind, gateway_id)
        self.span = parts.tracing.start(
            "je.job",
            submit.job.context.trace,
            request_id=submit.job.context.request_id,
            job_id=submit.job.id,
            model=submit.job.model,
        )

    @property
    def names(self) -> dict[str, str]:
        """What every log line about this job carries, whoever's turn of the loop it is."""
        return {"request_id": self._request.context.request_id, "job_id": self._request.id}

    def start(self, prepare: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begin with the way to admission; all that follows is told through the outbox."""
        self._arm_deadline()
        self._preparing = asyncio.create_task(self._guard(prepare))
        arrival = self._arrival = self._parts.room.arriving(self._request.context.tenant)
        self._preparing.add_done_callback(lambda _: arrival.end())

    def place_anew(
        self,
        place: Callable[[frozenset[str]], None],
        fail: Callable[[DeepFlowError], None],
        error: DeepFlowError,
        where: str,
    ) -> None:
        """Anywhere but there: now, or, where that one only goes, when another comes soon."""
        excluded = frozenset((where,))
        try:
            place(excluded)
        except Unavailable:
            log.debug("nobody else can take the task now")
        else:
            self._replaced(error)
            return
        if not isinstance(error, Unavailable):
            fail(error)
            return

        async def place_soon() -> None:
            await self._parts.links.settle_beside(self._request.model, excluded)
            try:
                place(excluded)
            except Unavailable:
                fail(error)
            else:
                self._replaced(error)

        task = asyncio.create_task(self._guard(place_soon))
        self._to_be_placed.add(task)
        task.add_done_callback(self._to_be_placed.discard)

    def arrived(self, prompt_tokens: int) -> None:
        """What it asks for is known.

        Raises Unavailable where nobody serves the model, and what the room's limits say.
        """
        self.story.prompt_tokens = prompt_tokens
        self.span.set(prompt_tokens=prompt_tokens)
        self._parts.links.group_view(self._request.model)
        self._parts.room.check(self._request.context.tenant)
        if self._arrival is not None:
            self._arrival.end()

    def wait_if_due(self) -> None:
        """Say that it waits, where nothing of it was called so far, and wait so long."""
        if self._is_called or self.is_admitted or self.is_over:
            return
        queued = jobs_pb2.JobQueued(handle=self._handle)
        self._outbox.answer(jobs_pb2.JobsResponse(queued=queued))
        self.span.event("queued")
        loop, seconds = asyncio.get_running_loop(), self._parts.room.limits.seconds_max
        self._patience = loop.call_later(seconds, self._wait_no_longer)

    def called(self) -> None:
        """It is the turn of one of its tasks."""
        self._is_called = True
        self._stop_patience()

    def admitted(self) -> None:
        self.is_admitted = True
        self.story.admitted()
        seconds = clock.monotonic() - self.story.received_at
        metrics.ADMISSION_SECONDS.labels(self._request.model).observe(seconds)
        self.span.event("admitted", after_ms=round(seconds * 1000, 2))
        admitted = jobs_pb2.JobAdmitted(handle=self._handle, job_executor_id=self._parts.id)
        self._outbox.answer(jobs_pb2.JobsResponse(admitted=admitted))

    def _replaced(self, error: DeepFlowError) -> None:
        """One of its tasks runs elsewhere now."""
        metrics.TASKS_REPLACED.inc()
        log.info("placed a task anew: %s", error, extra=self.names)

    def failed(self, error: DeepFlowError) -> None:
        self._place_no_more()
        self._outcome = error.reason
        self.story.failed(error)
        self.span.fail(error.message)
        log.info("job ends early: %s", error, extra=self.names)

    def our_mistake(self) -> DeepFlowError:
        """Of the exception that is caught right now: a job fails alone, whatever we did wrong."""
        log.exception("job failed", extra=self.names)
        return Internal("the job executor failed on this request")

    def lost_its_gateway(self) -> None:
        self._outcome = "gateway_lost"

    def end(self) -> None:
        self.is_over = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._stop_patience()
        if self._preparing is not None and self._preparing is not asyncio.current_task():
            self._preparing.cancel()
        self._place_no_more()
        self.span.end()
        self.story.ended(self._outcome)
        metrics.JOBS.labels(self._kind, self._outcome).inc()

    async def _guard(self, prepare: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await prepare()
        except DeepFlowError as error:
            self._on_error(error)
        except Exception:
            self._on_error(self.our_mistake())

    def _place_no_more(self) -> None:
        for task in self._to_be_placed - {asyncio.current_task()}:
            task.cancel()

    def _wait_no_longer(self) -> None:
        self._on_error(self._parts.room.waited_too_long())

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _arm_deadline(self) -> None:
        unix_ms = self._request.context.deadline_unix_ms
        if unix_ms:
            seconds = max(0.0, (unix_ms - clock.unix_ms()) / 1000)
            error = DeadlineExceeded("the request's deadline has passed")
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._on_error, error)
