"""The one face of a job executor: every RPC of its contract, handed to who does it."""

from collections.abc import AsyncIterator
from typing import Any

from deepflow.v1 import jobs_pb2
from deepflow.v1.jobs_pb2_grpc import JobExecutorServiceServicer
from services.job_executor.jobs.stream import JobStreams
from services.job_executor.jobs.tokenization import Tokenization


class JobExecutorService(JobExecutorServiceServicer):
    def __init__(self, streams: JobStreams, tokenization: Tokenization) -> None:
        self._streams = streams
        self._tokenization = tokenization

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
