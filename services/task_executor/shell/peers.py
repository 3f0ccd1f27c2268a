"""The job executors that are connected, and which task belongs to which of them.

An engine handle carries its stream's number in its upper bits, so that no token needs a lookup.
"""

import asyncio
from collections.abc import Callable, Iterator

from deepflow import clock
from deepflow.errors import DeepFlowError, InvalidRequest
from deepflow.v1 import tasks_pb2
from services.task_executor.flowserve.messages import Finished, StepOutput
from services.task_executor.shell.columns import Columns
from services.task_executor.shell.running_task import Beginning, RunningTask

# A message costs as much as fifty tokens, so the tokens of steps that take less than the first wait
# up to the second for one another. Not those with which an answer begins: somebody waits for its
# first character, and that may take four tokens.
TINY_STEP_SECONDS = 0.001
TOGETHER_SECONDS = 0.004
BEGINNING_TOKENS = 4

_HANDLE_BITS = 32
_HANDLE_MASK = (1 << _HANDLE_BITS) - 1


class PeerStream:
    """One job executor's stream: what waits for it and what it has running here."""

    def __init__(self, number: int, on_end: Callable[[], None]) -> None:
        self.number = number
        self._on_end = on_end
        self.columns = Columns()
        self.wake = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None
        self.tasks: dict[int, RunningTask] = {}  # by the job executor's handle

    def engine_handle(self, handle: int) -> int:
        return (self.number << _HANDLE_BITS) | handle

    def note(self, *, may_wait: bool) -> None:
        """A step brought something, which may wait a little for more or must go at once."""
        if not may_wait:
            self.wake.set()
        elif self._waking is None and not self.wake.is_set():
            loop = asyncio.get_running_loop()
            self._waking = loop.call_later(TOGETHER_SECONDS, self._wake_now)

    def take(self, te_incarnation: int) -> tasks_pb2.TaskTokenBatch:
        """What waits, or the first part of it where it is too much for one batch."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        return self.columns.take(te_incarnation)

    def _wake_now(self) -> None:
        self._waking = None
        self.wake.set()

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
        may_wait = output.seconds < TINY_STEP_SECONDS and not _begins_answer(output)
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
            self._deliver_tokens(output, may_wait=may_wait)
        for embedding in output.embeddings:
            if stream := self._streams.get(embedding.handle >> _HANDLE_BITS):
                stream.columns.add_embedding(embedding.handle & _HANDLE_MASK, embedding.values)
        for finished in output.finished:
            self._prefilling.pop(finished.handle, None)
            if stream := self._streams.get(finished.handle >> _HANDLE_BITS):
                stream.end(finished.handle & _HANDLE_MASK, finished)
                # Somebody may still wait for the first word of a task that drew nothing.
                stream.note(may_wait=may_wait and finished.completion_tokens > 0)

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
                stream.wake.set()
            for listener in self.on_begun:
                listener(task.beginning)

    def _deliver_tokens(self, output: StepOutput, *, may_wait: bool) -> None:
        numbers = {handle >> _HANDLE_BITS for handle in output.handles}
        if len(numbers) == 1:
            self._deliver_all(output, numbers.pop(), may_wait=may_wait)
        else:
            self._deliver_shares(output, may_wait=may_wait)

    def _deliver_all(self, output: StepOutput, number: int, *, may_wait: bool) -> None:
        """The usual case: all are one stream's."""
        if stream := self._streams.get(number):
            if output.tops is not None:
                stream.columns.add_tops(output.tops)
            stream.columns.add_step(
                output.step,
                [handle & _HANDLE_MASK for handle in output.handles],
                output.first_indexes,
                output.token_ids,
                output.logprobs,
            )
            stream.note(may_wait=may_wait)

    def _deliver_shares(self, output: StepOutput, *, may_wait: bool) -> None:
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
                stream.note(may_wait=may_wait)


def _begins_answer(output: StepOutput) -> bool:
    return min(output.first_indexes, default=BEGINNING_TOKENS) < BEGINNING_TOKENS
