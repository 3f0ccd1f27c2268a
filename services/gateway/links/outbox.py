"""What waits to be written to one stream."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from deepflow.v1 import jobs_pb2 as jobs


class Outbox:
    """Belongs to one stream and ends with it, so that a dead stream never takes a live one's mail.

    Bounded by what posts into it: a few messages a job, and `jobs_max` jobs.
    """

    def __init__(self, hello: jobs.JobsHello) -> None:
        self._waiting = deque([jobs.JobsRequest(hello=hello)])
        self._has_mail = asyncio.Event()
        self._is_closed = False

    def post(self, request: jobs.JobsRequest) -> None:
        self._waiting.append(request)
        self._has_mail.set()

    def close(self) -> None:
        self._is_closed = True
        self._waiting.clear()
        self._has_mail.set()

    async def requests(self) -> AsyncIterator[jobs.JobsRequest]:
        """gRPC pulls the next one when the one before is on its way."""
        while not self._is_closed:
            while self._waiting:
                yield self._waiting.popleft()
            self._has_mail.clear()
            await self._has_mail.wait()
