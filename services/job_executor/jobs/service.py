"""The one face of a job executor: every RPC of its contract, handed to who does it."""

from collections.abc import AsyncIterator
from typing import Any

from deepflow import clock
from deepflow.errors import NotFound
from deepflow.v1 import jobs_pb2
from deepflow.v1.jobs_pb2_grpc import JobExecutorServiceServicer
from services.job_executor.jobs.story import Stories
from services.job_executor.jobs.stream import JobStreams
from services.job_executor.jobs.tokenization import Tokenization


class JobExecutorService(JobExecutorServiceServicer):
    def __init__(
        self, streams: JobStreams, tokenization: Tokenization, stories: Stories, member_id: str
    ) -> None:
        self._streams = streams
        self._tokenization = tokenization
        self._stories = stories
        self._member_id = member_id

    async def Jobs(  # type: ignore[override]  # the stub knows only generators
        self, request_iterator: AsyncIterator[jobs_pb2.JobsRequest], context: Any
    ) -> None:
        await self._streams.serve(request_iterator, context)

    async def Tokenize(
        self, request: jobs_pb2.TokenizeRequest, context: Any
    ) -> jobs_pb2.TokenizeResponse:
        return await self._tokenization.tokenize(request)

    async def Detokenize(
        self, request: jobs_pb2.DetokenizeRequest, context: Any
    ) -> jobs_pb2.DetokenizeResponse:
        return await self._tokenization.detokenize(request)

    async def DescribeRequest(
        self, request: jobs_pb2.DescribeRequestRequest, context: Any
    ) -> jobs_pb2.DescribeRequestResponse:
        story = self._stories.find(request.tenant, request.request_id, clock.monotonic())
        if story is None:
            raise NotFound("nothing is known of this request", reason="request_not_found")
        return jobs_pb2.DescribeRequestResponse(story=story.to_proto(self._member_id))
