"""The job executors that are connected, and which task belongs to which of them.

An engine handle carries its stream's number in its upper bits, so that no token needs a lookup.
"""

import asyncio
from collections.abc import Callable, Iterator

from deepflow import clock
from deepflow.errors import DeepFlowError, InvalidRequest
from services.task_executor.flowserve.messages import Finished, StepOutput
from services.task_executor.shell.columns import Columns
from services.task_executor.shell.running_task import Beginning, RunningTask

_HANDLE_BITS = 32
_HANDLE_MASK = (1 << _HANDLE_BITS) - 1


class PeerStream:
    """One job executor's stream: what waits for it and what it has running here."""

    def __init__(self, number: int, on_end: Callable[[], None]) -> None:
        self.number = number
        self._on_end = on_end
        self.columns = Columns()
        self.wake = asyncio.Event()
        self.tasks: dict[int, RunningTask] = {}  # by the job executor's handle

    def engine_handle(self, handle: int) -> int:
        return (self.number << _HANDLE_BITS) | handle

    def open(self, handle: int, task: RunningTask) -> int:
        """Take a task in; answers the handle that the engine will know it by."""
        if handle in self.tasks:
            raise InvalidRequest(f"handle {handle} is in use on this stream", param="handle")
        self.tasks[handle] = task
        return self.engine_handle(handle)

    def end(self, handle: int, finished: Finished) -> None:
        task = self.tasks.pop(handle, None)
        if task is None:
            return  # refused or cancelled before
        task.ended(finished)
        self.columns.add_finished(handle, finished)
        self._on_end()

    def fail(self, handle: int, error: DeepFlowError) -> None:
        task = self.tasks.pop(handle, None)
        if task is not None:
            task.failed(error.message)
        self.columns.add_failure(handle, error)
        self.wake.set()
        self._on_end()

    def fail_all(self, error: DeepFlowError) -> None:
        for handle in list(self.tasks):
            self.fail(handle, error)


class Peers:
    """All streams of this shell."""

    def __init__(self) -> None:
        self._streams: dict[int, PeerStream] = {}
        self._next_number = 0
        self._progress = asyncio.Event()
        self._prefilling: dict[int, RunningTask] = {}  # by engine handle; no token has come yet
        self.on_begun: list[Callable[[Beginning], None]] = []

    def __iter__(self) -> Iterator[PeerStream]:
        return iter(self._streams.values())

    @property
    def num_tasks(self) -> int:
        return sum(len(stream.tasks) for stream in self)

    def batch_taken(self) -> None:
        """A writer took its stream's columns."""
        self._progress.set()

    def connect(self) -> PeerStream:
        self._next_number += 1
        stream = PeerStream(self._next_number, self._progress.set)
        self._streams[stream.number] = stream
        return stream

    def disconnect(self, stream: PeerStream) -> list[int]:
        """Forget a stream; answers the engine handles that nobody waits for any more."""
        del self._streams[stream.number]
        for task in stream.tasks.values():
            task.failed("the job executor went away")
        self._progress.set()
        abandoned = [stream.engine_handle(handle) for handle in stream.tasks]
        for handle in abandoned:
            self._prefilling.pop(handle, None)
        return abandoned

    async def wait_idle(self) -> None:
        """Until no task is left and every stream has been handed all that it waits for."""
        while self.num_tasks or any(stream.columns for stream in self):
            self._progress.clear()
            await self._progress.wait()

    def fail_all(self, error: DeepFlowError) -> None:
        self._prefilling.clear()
        for stream in self:
            stream.fail_all(error)

    def deliver(self, output: StepOutput) -> None:
        """Sort one step's columns by stream and wake the writers."""
        for handle in output.accepted:
            if stream := self._streams.get(handle >> _HANDLE_BITS):
                stream.columns.accepted.append(handle & _HANDLE_MASK)
                stream.wake.set()
        if output.started:
            self._note_started(output)
        for report in output.prompt_logprobs:
            if stream := self._streams.get(report.handle >> _HANDLE_BITS):
                stream.columns.add_prompt_logprobs(report.handle & _HANDLE_MASK, report)
                stream.wake.set()
        if output.handles:
            if self._prefilling:
                self._note_first_tokens(output.handles)
            self._deliver_tokens(output)
        for embedding in output.embeddings:
            if stream := self._streams.get(embedding.handle >> _HANDLE_BITS):
                stream.columns.add_embedding(embedding.handle & _HANDLE_MASK, embedding.values)
        for finished in output.finished:
            self._prefilling.pop(finished.handle, None)
            if stream := self._streams.get(finished.handle >> _HANDLE_BITS):
                stream.end(finished.handle & _HANDLE_MASK, finished)
                stream.wake.set()

    def _note_started(self, output: StepOutput) -> None:
        began_at = clock.monotonic() - output.seconds
        for started in output.started:
            stream = self._streams.get(started.handle >> _HANDLE_BITS)
            if stream and (task := stream.tasks.get(started.handle & _HANDLE_MASK)):
                task.started(started.cached_tokens, began_at)
                self._prefilling[started.handle] = task

    def _note_first_tokens(self, handles: list[int]) -> None:
        now = clock.monotonic()
        for handle in self._prefilling.keys() & handles:
            task = self._prefilling.pop(handle)
            task.first_token(now)
            if stream := self._streams.get(handle >> _HANDLE_BITS):
                stream.columns.add_started(handle & _HANDLE_MASK, task.beginning)
            for listener in self.on_begun:
                listener(task.beginning)

    def _deliver_tokens(self, output: StepOutput) -> None:
        owned: dict[int, list[int]] = {}
        for index, handle in enumerate(output.handles):
            owned.setdefault(handle >> _HANDLE_BITS, []).append(index)
        for number, indexes in owned.items():
            if stream := self._streams.get(number):
                if output.tops is not None:
                    stream.columns.add_tops(output.tops.only(indexes))
                stream.columns.add_step(
                    output.step,
                    [output.handles[index] & _HANDLE_MASK for index in indexes],
                    [output.first_indexes[index] for index in indexes],
                    [output.token_ids[index] for index in indexes],
                    [output.logprobs[index] for index in indexes],
                )
                stream.wake.set()
