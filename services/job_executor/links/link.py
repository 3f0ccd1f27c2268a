"""One task executor: a stream that lasts as long as both ends do."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from deepflow import clock
from deepflow.background import end
from deepflow.errors import DeepFlowError, Unavailable
from deepflow.rpc import Peer, translate
from deepflow.v1 import cluster_pb2, events_pb2, tasks_pb2
from deepflow.v1.tasks_pb2_grpc import TaskExecutorServiceStub
from services.job_executor.links.unstarted import Unstarted
from services.job_executor.scheduling.capacity import Capacity, Occupancy

log = logging.getLogger(__name__)

RECONNECT_FIRST_SECONDS = 0.05
RECONNECT_MAX_SECONDS = 1.0
RETRY_SECONDS = 1.0
FRESH_SECONDS = 3.0


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
        on_room: Callable[[], None],
        on_live: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_room` is told whenever there may be room for one task more, `on_live` by its id that
        it can be asked from now on."""
        self.member = member
        self.incarnation = member.incarnation
        self.is_live = False
        self.settled = asyncio.Event()  # the first attempt to connect has ended, well or not
        self.tasks: dict[int, TaskOwner] = {}
        self.reported = 0  # tasks there by its last heartbeat, and ours at that moment
        self.outstanding_at_report = 0
        self._reported_at = 0.0
        self._free_blocks: int | None = None  # by its last heartbeat
        self._unstarted = Unstarted()
        self._on_room = on_room
        self._on_live = on_live
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

    @property
    def peer(self) -> Peer:
        """For calls beside the stream."""
        return self._peer

    @property
    def capacity(self) -> Capacity:
        told = self.member.capabilities
        return Capacity(told.max_sequences, told.max_step_tokens, told.block_size)

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(
            tasks=len(self.tasks),
            unstarted=len(self._unstarted),
            unstarted_tokens=self._unstarted.tokens,
            others=max(0, self.reported - self.outstanding_at_report),
            free_blocks=self._free_blocks if self._is_report_fresh else None,
        )

    @property
    def _is_report_fresh(self) -> bool:
        """Memory changes fast: what was free long ago says nothing."""
        return clock.monotonic() - self._reported_at < FRESH_SECONDS

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        await end(self._running)
        await self._peer.close()

    def submit(self, task: tasks_pb2.Task, owner: TaskOwner, tokens: int) -> int:
        """Send a task on its way, which has so many `tokens` to compute before its first.

        Raises Unavailable where there is no stream.
        """
        if not self.is_live:
            raise self._gone("is not connected")
        handle = self._next_handle
        self._next_handle += 1
        self.tasks[handle] = owner
        self._unstarted.add(handle, tokens)
        self._send(tasks_pb2.TasksRequest(submit=tasks_pb2.SubmitTask(handle=handle, task=task)))
        return handle

    def cancel(self, handle: int) -> None:
        """Nobody waits for the task any more; its owner hears nothing further."""
        if self.tasks.pop(handle, None) is not None:
            self._unstarted.discard(handle)
            self._send(tasks_pb2.TasksRequest(cancel=tasks_pb2.CancelTask(handle=handle)))
            self._on_room()

    def note_load(self, load: events_pb2.Load) -> None:
        self.reported = load.waiting + load.running
        self.outstanding_at_report = len(self.tasks)
        self._reported_at = clock.monotonic()
        self._free_blocks = load.free_blocks if load.total_blocks else None
        self._on_room()

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
        self._on_room()
        self._on_live(self.id)

    async def _read(self, call: Any) -> None:
        receive, tasks = self._receive, self.tasks
        while (response := await call.read()) is not grpc.aio.EOF:
            batch = response.tokens
            receive(batch, tasks)
            if batch.started or batch.finished:
                self._note_progress(batch)

    def _note_progress(self, batch: tasks_pb2.TaskTokenBatch) -> None:
        for started in batch.started:
            self._unstarted.discard(started.handle)
        for finished in batch.finished:
            self._unstarted.discard(finished.handle)
        self._on_room()

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
            handle, owner = self.tasks.popitem()
            self._unstarted.discard(handle)
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
