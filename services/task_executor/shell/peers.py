"""The job executors that are connected, and which task belongs to which of them.

An engine handle carries its stream's number in its upper bits, so that no token needs a lookup.
"""

import asyncio
from collections.abc import Callable, Iterator

from deepflow.errors import DeepFlowError, InvalidRequest
from deepflow.telemetry import Span
from services.task_executor.flowserve.messages import Finished, StepOutput
from services.task_executor.shell.columns import Columns

_HANDLE_BITS = 32
_HANDLE_MASK = (1 << _HANDLE_BITS) - 1


class PeerStream:
    """One job executor's stream: what waits for it and what it has running here."""

    def __init__(self, number: int, on_end: Callable[[], None]) -> None:
        self.number = number
        self._on_end = on_end
        self.columns = Columns()
        self.wake = asyncio.Event()
        self.tasks: dict[int, Span] = {}  # by the job executor's handle

    def engine_handle(self, handle: int) -> int:
        return (self.number << _HANDLE_BITS) | handle

    def open(self, handle: int, span: Span) -> int:
        """Take a task in; answers the handle that the engine will know it by."""
        if handle in self.tasks:
            raise InvalidRequest(f"handle {handle} is in use on this stream", param="handle")
        self.tasks[handle] = span
        return self.engine_handle(handle)

    def end(self, handle: int, finished: Finished) -> None:
        span = self.tasks.pop(handle, None)
        if span is None:
            return  # refused or cancelled before
        span.set(
            finish_reason=finished.reason,
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
        )
        span.end()
        self.columns.add_finished(handle, finished)
        self._on_end()

    def fail(self, handle: int, error: DeepFlowError) -> None:
        span = self.tasks.pop(handle, None)
        if span is not None:
            span.fail(error.message)
            span.end()
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
        for span in stream.tasks.values():
            span.fail("the job executor went away")
            span.end()
        self._progress.set()
        return [stream.engine_handle(handle) for handle in stream.tasks]

    async def wait_idle(self) -> None:
        """Until no task is left and every stream has been handed all that it waits for."""
        while self.num_tasks or any(stream.columns for stream in self):
            self._progress.clear()
            await self._progress.wait()

    def fail_all(self, error: DeepFlowError) -> None:
        for stream in self:
            stream.fail_all(error)

    def deliver(self, output: StepOutput) -> None:
        """Sort one step's columns by stream and wake the writers."""
        for handle in output.accepted:
            if stream := self._streams.get(handle >> _HANDLE_BITS):
                stream.columns.accepted.append(handle & _HANDLE_MASK)
                stream.wake.set()
        for report in output.prompt_logprobs:
            if stream := self._streams.get(report.handle >> _HANDLE_BITS):
                stream.columns.add_prompt_logprobs(report.handle & _HANDLE_MASK, report)
                stream.wake.set()
        if output.handles:
            self._deliver_tokens(output)
        for embedding in output.embeddings:
            if stream := self._streams.get(embedding.handle >> _HANDLE_BITS):
                stream.columns.add_embedding(embedding.handle & _HANDLE_MASK, embedding.values)
        for finished in output.finished:
            if stream := self._streams.get(finished.handle >> _HANDLE_BITS):
                stream.end(finished.handle & _HANDLE_MASK, finished)
                stream.wake.set()

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
