"""The streams of the gateways: jobs in, columns of text out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from deepflow.errors import DeepFlowError, InvalidRequest, Unavailable, to_proto
from deepflow.rpc import abort
from deepflow.v1 import jobs_pb2
from services.job_executor import metrics
from services.job_executor.jobs.embedding import EmbeddingJob
from services.job_executor.jobs.job import Job
from services.job_executor.jobs.outbox import Outbox
from services.job_executor.jobs.parts import Parts

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class JobsStream:
    """One gateway: its jobs, and what waits to be sent to it."""

    def __init__(self, streams: "JobStreams", gateway_id: str) -> None:
        self._streams = streams
        self._gateway_id = gateway_id
        self.outbox = Outbox()
        self.jobs: dict[int, Job | EmbeddingJob] = {}

    async def read(self, requests: AsyncIterator[jobs_pb2.JobsRequest]) -> None:
        async for request in requests:
            self.receive(request)

    def receive(self, request: jobs_pb2.JobsRequest) -> None:
        """Raises InvalidRequest for what breaks the contract; the stream ends with it."""
        kind = request.WhichOneof("kind")
        if kind == "credit":
            credit = request.credit
            if job := self.jobs.get(credit.handle):
                job.credit(credit.choice_index, credit.delivered_tokens)
        elif kind == "submit":
            self._submit(request.submit)
        elif kind == "cancel":
            if job := self.jobs.get(request.cancel.handle):
                job.cancel()
        else:
            raise InvalidRequest(f"{kind or 'an empty message'} cannot come here", param="kind")

    async def write(self, context: Any) -> None:
        """The stream's one writer: while it waits for the gateway, choices gather tokens."""
        outbox = self.outbox
        while True:
            await outbox.wake.wait()
            outbox.wake.clear()
            for response in outbox.take():
                await context.write(response)

    def close(self) -> None:
        for job in list(self.jobs.values()):
            job.drop()

    def _submit(self, submit: jobs_pb2.SubmitJob) -> None:
        if submit.handle in self.jobs:
            raise InvalidRequest(f"handle {submit.handle} is in use on this stream", param="handle")
        try:
            self._streams.check_room(submit.job.context.tenant)
        except DeepFlowError as error:
            metrics.JOBS_TURNED_AWAY.labels(error.reason).inc()
            refused = jobs_pb2.JobRefused(handle=submit.handle, error=to_proto(error))
            self.outbox.answer(jobs_pb2.JobsResponse(refused=refused))
            return
        kind = EmbeddingJob if submit.job.HasField("embedding") else Job
        job = kind(
            submit, self.outbox, self._streams.parts, self._forget, gateway_id=self._gateway_id
        )
        self.jobs[submit.handle] = job
        job.start()

    def _forget(self, job: Job | EmbeddingJob) -> None:
        del self.jobs[job.handle]
        self._streams.job_ended()


class JobStreams:
    """All gateways, and what bounds them together."""

    def __init__(self, parts: Parts, *, jobs_max: int, incarnation: int) -> None:
        self.parts = parts
        self._jobs_max = jobs_max
        self._streams: set[JobsStream] = set()
        self._idle = asyncio.Event()
        self._is_closed = False
        self._left = asyncio.Event()  # a gateway closed its stream
        self._welcome = jobs_pb2.JobsResponse(
            welcome=jobs_pb2.JobsWelcome(job_executor_id=parts.id, incarnation=incarnation)
        )

    @property
    def jobs(self) -> list[Job | EmbeddingJob]:
        return [job for stream in self._streams for job in stream.jobs.values()]

    @property
    def num_jobs(self) -> int:
        return sum(len(stream.jobs) for stream in self._streams)

    async def serve(
        self, request_iterator: AsyncIterator[jobs_pb2.JobsRequest], context: Any
    ) -> None:
        """One gateway, until either side ends the stream; its end ends every job on it."""
        requests = aiter(request_iterator)
        try:
            hello = _require_hello(await anext(requests, None))
        except InvalidRequest as error:
            await abort(context, error)
            return
        await context.write(self._welcome)
        log.info("gateway %s connected", hello.gateway_id)
        try:
            await self._converse(requests, context, hello.gateway_id)
        except InvalidRequest as error:
            await abort(context, error)
        finally:
            log.info("gateway %s left", hello.gateway_id)

    async def _converse(
        self, requests: AsyncIterator[jobs_pb2.JobsRequest], context: Any, gateway_id: str
    ) -> None:
        stream = JobsStream(self, gateway_id)
        self._streams.add(stream)
        ends = [
            asyncio.create_task(stream.read(requests)),
            asyncio.create_task(stream.write(context)),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stream.close()
            self._streams.discard(stream)
            self._left.set()
            for task in ends:
                task.cancel()
            results = await asyncio.gather(*ends, return_exceptions=True)
        for error in results:
            if isinstance(error, InvalidRequest):
                raise error
            if isinstance(error, Exception):
                log.info("the stream broke: %r", error)

    def check_room(self, tenant: str) -> None:
        """Raises Unavailable or RateLimited where a job more cannot be taken from `tenant`."""
        if self._is_closed:
            raise Unavailable("this job executor is draining", retry_after_seconds=RETRY_SECONDS)
        if self.num_jobs >= self._jobs_max:
            raise Unavailable(
                f"this job executor has {self._jobs_max} jobs already",
                reason="job_executor_full",
                retry_after_seconds=RETRY_SECONDS,
            )
        self.parts.room.check(tenant, is_new=True)

    def job_ended(self) -> None:
        if self.num_jobs == 0:
            self._idle.set()

    async def drain(self, linger_seconds: float) -> None:
        """Returns once no job is left. Gateways learn from the view to send no more: until they
        have, or the time is up, their jobs are taken.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(linger_seconds):
                while self._streams:
                    self._left.clear()
                    await self._left.wait()
        self._is_closed = True
        while self.num_jobs:
            self._idle.clear()
            await self._idle.wait()


def _require_hello(first: jobs_pb2.JobsRequest | None) -> jobs_pb2.JobsHello:
    if first is None or first.WhichOneof("kind") != "hello":
        raise InvalidRequest("the first message of a Jobs stream must be a hello", param="hello")
    return first.hello
