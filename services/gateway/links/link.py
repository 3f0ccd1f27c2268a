"""The stream to one job executor. It carries every job that this gateway gave to it."""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator

import grpc.aio

from deepflow import background
from deepflow.errors import DeepFlowError, Internal, Unavailable, from_proto
from deepflow.rpc import Peer, translate
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1.jobs_pb2_grpc import JobExecutorServiceStub
from services.gateway import metrics
from services.gateway.links.outbox import Outbox
from services.gateway.links.run import Answer, JobRun

log = logging.getLogger(__name__)

RETRY_FIRST_SECONDS = 0.05
RETRY_MAX_SECONDS = 1.0
RETRY_AFTER_SECONDS = 1.0

Call = grpc.aio.StreamStreamCall[jobs.JobsRequest, jobs.JobsResponse]


class JobExecutorLink:
    """Opens its stream again and again until closed; `is_up` while jobs can be submitted."""

    def __init__(
        self,
        member: cluster.Member,
        *,
        token: str,
        hello: jobs.JobsHello,
        hello_seconds_max: float,
        on_change: Callable[[], None],
    ) -> None:
        self.member = member
        self.is_up = False
        # Takes no new job; goes when its jobs have ended.
        self.is_retired = False
        self.runs: dict[int, JobRun] = {}
        self._num_calls = 0  # beside the stream
        self._peer = Peer(member.address, token)
        self._hello = hello
        self._hello_seconds_max = hello_seconds_max
        self._on_change = on_change
        self._handles = itertools.count(1)
        self._outbox: Outbox | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether anybody still waits for something from it."""
        return bool(self.runs or self._num_calls)

    @contextlib.contextmanager
    def beside(self) -> Iterator[Peer]:
        """For a long call beside the stream: the link stays until it has ended."""
        self._num_calls += 1
        try:
            yield self._peer
        finally:
            self._num_calls -= 1
            self._leave_if_idle()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_open())

    async def close(self) -> None:
        await background.end(self._task)
        await self._peer.close()

    def submit(self, job: jobs.Job, choices: int, answer: Answer, token_window: int) -> JobRun:
        """Hand a job over; the caller must `release` the run, whatever happens."""
        handle = next(self._handles)
        submit = jobs.SubmitJob(handle=handle, job=job, token_window=token_window)
        run = self.runs[handle] = JobRun(submit, choices, answer, self._post)
        self._post(jobs.JobsRequest(submit=submit))
        return run

    def release(self, run: JobRun) -> None:
        """The caller is done with it; a job that still runs is cancelled at once."""
        if self.runs.pop(run.handle, None) is None:
            return
        if self.is_up and run.open_choices > 0:
            self._post(jobs.JobsRequest(cancel=jobs.CancelJob(handle=run.handle)))
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self.is_retired and not self.is_busy:
            self._on_change()

    async def tokenize(
        self, request: jobs.TokenizeRequest, seconds_max: float
    ) -> jobs.TokenizeResponse:
        stub = JobExecutorServiceStub(self._peer.channel)
        return await self._peer.call(stub.Tokenize, request, timeout_seconds=seconds_max)

    async def detokenize(
        self, request: jobs.DetokenizeRequest, seconds_max: float
    ) -> jobs.DetokenizeResponse:
        stub = JobExecutorServiceStub(self._peer.channel)
        return await self._peer.call(stub.Detokenize, request, timeout_seconds=seconds_max)

    async def describe(
        self, request: jobs.DescribeRequestRequest, seconds_max: float
    ) -> jobs.DescribeRequestResponse:
        stub = JobExecutorServiceStub(self._peer.channel)
        return await self._peer.call(stub.DescribeRequest, request, timeout_seconds=seconds_max)

    def _post(self, request: jobs.JobsRequest) -> None:
        if self._outbox is not None:
            self._outbox.post(request)

    async def _keep_open(self) -> None:
        pause = RETRY_FIRST_SECONDS
        while True:
            try:
                await self._serve_one_stream()
                pause = RETRY_FIRST_SECONDS
                failure: DeepFlowError = Unavailable("it closed the stream")
            except grpc.aio.AioRpcError as error:
                failure = translate(error)
            except TimeoutError:
                failure = Unavailable(f"no welcome within {self._hello_seconds_max:g} s")
            except ValueError as error:
                failure = Internal(f"it sent columns of unequal length: {error}")
            except Exception as error:  # the top of every link: it opens its stream again
                log.exception("the stream to job executor %s failed", self.member.id)
                failure = Internal(f"{type(error).__name__} while its stream was read")
            finally:
                was_up = self.is_up
                self._fall()
            log.info("stream to job executor %s ended: %s", self.member.id, failure)
            if was_up:
                pause = RETRY_FIRST_SECONDS
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, RETRY_MAX_SECONDS)

    async def _serve_one_stream(self) -> None:
        stub = JobExecutorServiceStub(self._peer.channel)
        outbox = Outbox(self._hello)
        call: Call = stub.Jobs(outbox.requests(), metadata=self._peer.metadata, wait_for_ready=True)
        try:
            async with asyncio.timeout(self._hello_seconds_max):
                welcome = await call.read()
            if not isinstance(welcome, jobs.JobsResponse):
                return
            self._outbox = outbox
            self._rise(welcome.welcome)
            while isinstance(response := await call.read(), jobs.JobsResponse):
                self._receive(response)
        finally:
            self._outbox = None
            outbox.close()
            call.cancel()

    def _rise(self, welcome: jobs.JobsWelcome) -> None:
        log.info("stream to job executor %s is up", welcome.job_executor_id)
        self.is_up = True
        metrics.LINKS_UP.inc()
        self._on_change()

    def _fall(self) -> None:
        if not self.is_up:
            return
        self.is_up = False
        metrics.LINKS_UP.dec()
        failure = Unavailable(
            f"the job executor {self.member.id} went away; try again",
            reason="job_executor_lost",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
        runs, self.runs = self.runs, {}
        for run in runs.values():
            run.fail(failure)
        self._on_change()

    def _receive(self, response: jobs.JobsResponse) -> None:
        kind = response.WhichOneof("kind")
        if kind == "tokens":
            self._deliver(response.tokens)
        elif kind == "admitted":
            if run := self.runs.get(response.admitted.handle):
                run.admit()
        elif kind == "queued":
            if run := self.runs.get(response.queued.handle):
                run.queue()
        elif kind == "embedding":
            if run := self.runs.get(response.embedding.handle):
                run.take_vector(response.embedding)
        elif kind == "refused" and (run := self.runs.get(response.refused.handle)):
            # Over for the job executor as well: nothing is left to cancel.
            run.fail(from_proto(response.refused.error))
            run.open_choices = 0

    def _deliver(self, batch: jobs.JobTokenBatch) -> None:
        """Give every job its share of a batch, then let each pass its share on, once."""
        runs = self.runs
        texts, ids = list(batch.texts), list(batch.token_ids)
        metrics.TOKENS.inc(len(ids))
        touched: list[JobRun] = []
        for prompt in batch.prompts:
            run = runs.get(prompt.handle)
            if run is not None and run.show_prompt(prompt):
                touched.append(run)
        if batch.details:
            self._describe(batch)
        start = 0
        # Entries of jobs that were cancelled on the way find no run and are skipped.
        for handle, choice, first, count in zip(
            batch.handles,
            batch.choice_indexes,
            batch.first_token_indexes,
            batch.token_counts,
            strict=True,
        ):
            end = start + count
            run = runs.get(handle)
            if run is not None and run.take(choice, first, texts[start:end], ids[start:end]):
                touched.append(run)
            start = end
        for call in batch.tool_calls:
            run = runs.get(call.handle)
            if run is not None and run.call_tool(call):
                touched.append(run)
        for finished in batch.finished:
            run = runs.get(finished.handle)
            if run is not None and run.finish(finished):
                touched.append(run)
        for run in touched:
            run.flush()

    def _describe(self, batch: jobs.JobTokenBatch) -> None:
        """Announce the tokens of entries whose job wants to know more of them."""
        starts = list(itertools.accumulate(batch.token_counts, initial=0))
        for details in batch.details:
            entry = details.entry
            if entry >= len(batch.handles):
                raise ValueError(f"details of entry {entry}, which is not there")
            run = self.runs.get(batch.handles[entry])
            if run is not None:
                logprobs = batch.logprobs[starts[entry] : starts[entry + 1]]
                run.describe(batch.choice_indexes[entry], details, logprobs)
