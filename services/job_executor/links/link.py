"""One task executor: a stream that lasts as long as both ends do."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from deepflow.background import end
from deepflow.errors import DeepFlowError, Unavailable
from deepflow.rpc import Peer, translate
from deepflow.v1 import cluster_pb2, tasks_pb2
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub

log = logging.getLogger(__name__)

RECONNECT_FIRST_SECONDS = 0.05
RECONNECT_MAX_SECONDS = 1.0
RETRY_SECONDS = 1.0


class TaskOwner(Protocol):
    """Who submitted a task hears of it exactly once: `finished` or `lost`, never both."""

    def accepted(self) -> None:
        """The engine has the task in its queue."""

    def take(self, first_index: int, token_id: int, logprob: float) -> None:
        """One token; `first_index` is its absolute index within the choice."""

    def alternatives(self, index: int, token_ids: list[int], logprobs: list[float]) -> None:
        """What might have been drawn instead of the token that comes next, likeliest first."""

    def prompt_logprobs(self, told: tasks_pb2.PromptLogprobs) -> None:
        """Of consecutive tokens of the prompt; all of them come before the first token."""

    def finished(self, end: tasks_pb2.TaskFinished) -> None:
        """The task executor ended the task."""

    def lost(self, error: DeepFlowError) -> None:
        """The stream broke; nothing more will be heard of the task."""


Receive = Callable[[tasks_pb2.TaskTokenBatch, dict[int, TaskOwner]], None]


class TaskExecutorLink:
    """Reconnects for as long as it is open; tasks never survive a broken stream."""

    def __init__(
        self,
        member: cluster_pb2.Member,
        token: str,
        hello: tasks_pb2.TasksHello,
        receive: Receive,
    ) -> None:
        self.member = member
        self.incarnation = member.incarnation
        self.is_live = False
        self.settled = asyncio.Event()  # the first attempt to connect has ended, well or not
        self.tasks: dict[int, TaskOwner] = {}
        self.reported = 0  # tasks there by its last heartbeat, and ours at that moment
        self.outstanding_at_report = 0
        self._peer = Peer(member.address, token)
        self._hello = hello
        self._receive = receive
        self._outgoing: deque[tasks_pb2.TasksRequest] = deque()
        self._wake = asyncio.Event()
        self._next_handle = 1
        self._running: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.member.id

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        await end(self._running)
        await self._peer.close()

    def submit(self, task: tasks_pb2.Task, owner: TaskOwner) -> int:
        """Send a task on its way; raises Unavailable where there is no stream."""
        if not self.is_live:
            raise self._gone("is not connected")
        handle = self._next_handle
        self._next_handle += 1
        self.tasks[handle] = owner
        self._send(tasks_pb2.TasksRequest(submit=tasks_pb2.SubmitTask(handle=handle, task=task)))
        return handle

    def cancel(self, handle: int) -> None:
        """Nobody waits for the task any more; its owner hears nothing further."""
        if self.tasks.pop(handle, None) is not None:
            self._send(tasks_pb2.TasksRequest(cancel=tasks_pb2.CancelTask(handle=handle)))

    def note_load(self, reported: int) -> None:
        self.reported = reported
        self.outstanding_at_report = len(self.tasks)

    def _send(self, request: tasks_pb2.TasksRequest) -> None:
        # At most one submit and one cancel a task, so the jobs' limit bounds this too.
        self._outgoing.append(request)
        self._wake.set()

    async def _run(self) -> None:
        pause = RECONNECT_FIRST_SECONDS
        while True:
            try:
                await self._converse()
                reason = "ended its stream"
            except grpc.aio.AioRpcError as error:
                reason = f"broke its stream: {translate(error)}"
            except asyncio.CancelledError:
                # gRPC raises this too where the peer cancelled; only our own means to stop.
                if _is_cancelled():
                    raise
                reason = "cancelled its stream"
            except Exception:  # the top of one link: one bad message must not end it for good
                log.exception("the stream to task executor %s failed", self.id)
                reason = "sent what cannot be understood"
            finally:
                was_live, self.is_live = self.is_live, False
                self.settled.set()
                self._lose_all()
            if was_live:
                log.warning("task executor %s %s", self.id, reason)
                pause = RECONNECT_FIRST_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_MAX_SECONDS)

    async def _converse(self) -> None:
        """One stream from hello to its end."""
        self._outgoing.clear()
        stub = TaskExecutorServiceStub(self._peer.channel)
        call: Any = stub.Tasks(metadata=self._peer.metadata)
        try:
            await call.write(tasks_pb2.TasksRequest(hello=self._hello))
            first = await call.read()
            if first is grpc.aio.EOF or not first.HasField("welcome"):
                return
            self._welcomed(first.welcome)
            writer = asyncio.create_task(self._write(call))
            try:
                await self._read(call)
            finally:
                writer.cancel()
        finally:
            call.cancel()

    def _welcomed(self, welcome: tasks_pb2.TasksWelcome) -> None:
        log.info("connected to task executor %s", welcome.task_executor_id)
        self.incarnation = welcome.incarnation
        self.is_live = True
        self.settled.set()

    async def _read(self, call: Any) -> None:
        receive, tasks = self._receive, self.tasks
        while (response := await call.read()) is not grpc.aio.EOF:
            receive(response.tokens, tasks)

    async def _write(self, call: Any) -> None:
        # A failed write ends the stream, which the reader sees.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._outgoing:
                    await call.write(self._outgoing.popleft())

    def _lose_all(self) -> None:
        error = self._gone("went away")
        while self.tasks:
            _, owner = self.tasks.popitem()
            owner.lost(error)

    def _gone(self, what: str) -> Unavailable:
        return Unavailable(
            f"task executor {self.id} {what}",
            reason="task_executor_lost",
            retry_after_seconds=RETRY_SECONDS,
        )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
