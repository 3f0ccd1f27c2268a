"""The streams of the job executors: tasks in, columns of tokens out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from deepflow.errors import DeepFlowError, InvalidRequest, RateLimited, Unavailable
from deepflow.lifecycle import Lifecycle
from deepflow.rpc import abort
from deepflow.telemetry import Tracing
from deepflow.v1 import tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.task_executor.shell.engine import EngineProcess
from services.task_executor.shell.peers import Peers, PeerStream
from services.task_executor.shell.running_task import RunningTask
from services.task_executor.shell.translate import to_submit

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class TaskStreams:
    """Serves TaskExecutorService.Tasks."""

    def __init__(
        self,
        peers: Peers,
        engine: EngineProcess,
        lifecycle: Lifecycle,
        tracing: Tracing,
        *,
        task_executor_id: str,
        incarnation: int,
        tasks_max: int,
    ) -> None:
        self._peers = peers
        self._engine = engine
        self._lifecycle = lifecycle
        self._tracing = tracing
        self._welcome = tasks_pb2.TasksWelcome(
            task_executor_id=task_executor_id, incarnation=incarnation
        )
        self._incarnation = incarnation
        self._tasks_max = tasks_max

    async def serve(self, requests: AsyncIterator[tasks_pb2.TasksRequest], context: Any) -> None:
        """One job executor, until either side ends the stream."""
        try:
            hello = _require_hello(await anext(aiter(requests), None))
        except InvalidRequest as error:
            await abort(context, error)
            return
        log.info("job executor %s connected", hello.job_executor_id)
        await context.write(tasks_pb2.TasksResponse(welcome=self._welcome))
        stream = self._peers.connect()
        reader = asyncio.create_task(self._read(requests, stream))
        try:
            await self._write(stream, reader, context)
        finally:
            reader.cancel()
            self._engine.cancel(self._peers.disconnect(stream))
            log.info("job executor %s left", hello.job_executor_id)

    async def _write(self, stream: PeerStream, reader: asyncio.Task[None], context: Any) -> None:
        """What steps add while a write waits goes into the next one."""
        reader.add_done_callback(lambda _: stream.wake.set())
        while not reader.done():
            await stream.wake.wait()
            stream.wake.clear()
            if stream.columns:
                batch = stream.take(self._incarnation)
                if stream.columns:  # it did not fit
                    stream.wake.set()
                await context.write(tasks_pb2.TasksResponse(tokens=batch))
                self._peers.batch_taken()
        with contextlib.suppress(asyncio.CancelledError):
            reader.result()

    async def _read(
        self, requests: AsyncIterator[tasks_pb2.TasksRequest], stream: PeerStream
    ) -> None:
        async for request in requests:
            kind = request.WhichOneof("kind")
            if kind == "submit":
                self._submit(request.submit, stream)
            elif kind == "cancel":
                self._engine.cancel([stream.engine_handle(request.cancel.handle)])

    def _submit(self, submit: tasks_pb2.SubmitTask, stream: PeerStream) -> None:
        """Hand a task to the engine; what cannot be taken fails alone, at once."""
        try:
            self._check_room(submit.task)
            span = self._tracing.start(
                "te.task",
                submit.task.context.trace,
                request_id=submit.task.context.request_id,
                task_id=submit.task.id,
                prompt_tokens=len(submit.task.prompt_token_ids),
            )
            names = {"request_id": submit.task.context.request_id, "task_id": submit.task.id}
            handle = stream.open(submit.handle, RunningTask(span, **names))
            self._engine.submit(to_submit(handle, submit.task))
        except DeepFlowError as error:
            stream.fail(submit.handle, error)

    def _check_room(self, task: tasks_pb2.Task) -> None:
        if self._lifecycle.state != types.LIFECYCLE_STATE_READY:
            raise Unavailable(
                f"this task executor is {self._lifecycle.word}", retry_after_seconds=RETRY_SECONDS
            )
        if task.model != self._engine.deployment:
            raise Unavailable(
                f"this task executor holds {self._engine.deployment!r}, not {task.model!r}",
                retry_after_seconds=RETRY_SECONDS,
            )
        if self._peers.num_tasks >= self._tasks_max:
            raise RateLimited(
                f"this task executor has {self._tasks_max} tasks already",
                reason="task_executor_full",
                retry_after_seconds=RETRY_SECONDS,
            )


def _require_hello(first: tasks_pb2.TasksRequest | None) -> tasks_pb2.TasksHello:
    if first is None or first.WhichOneof("kind") != "hello":
        raise InvalidRequest("the first message of a Tasks stream must be a hello", param="hello")
    return first.hello
