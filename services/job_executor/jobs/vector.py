"""One vector of a job of embeddings: the task that makes it, and its numbers."""

import math
import sys
from array import array
from typing import Protocol

from deepflow.errors import DeepFlowError, Internal, Unavailable, from_proto
from deepflow.v1 import tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.links.link import TaskExecutorLink
from services.job_executor.scheduling.ticket import Ticket
from services.job_executor.scheduling.waiting_room import WaitingRoom

VALUE_BYTES = 4


class VectorOwner(Protocol):
    """The job behind a vector."""

    def task_called(self, task: "VectorTask") -> None:
        """It is its turn: it is to be placed."""

    def task_accepted(self, task: "VectorTask") -> None:
        """Its task executor has it."""

    def task_done(self, task: "VectorTask", values: bytes) -> None:
        """Its vector is here: nothing of the task is left anywhere else."""

    def task_failed(self, task: "VectorTask", error: DeepFlowError, where: str) -> None:
        """Nothing more will come of it, which `where` had."""


class VectorTask:
    """Owner of a task: hears of it through the link, tells its job."""

    __slots__ = (
        "_is_done",
        "_job",
        "_link",
        "_room",
        "_task_handle",
        "_ticket",
        "attempt",
        "index",
        "prompt",
    )

    num_new_tokens = 0  # a vector is none

    def __init__(self, job: VectorOwner, index: int, prompt: list[int]) -> None:
        self._job = job
        self.index = index
        self.prompt = prompt
        self.attempt = 0
        self._is_done = False
        self._link: TaskExecutorLink | None = None
        self._task_handle = 0
        self._room: WaitingRoom | None = None
        self._ticket: Ticket | None = None

    def ask(self, room: WaitingRoom, ticket: Ticket) -> None:
        """For a place; it keeps the ticket until its task is over, wherever that runs."""
        self._room, self._ticket = room, ticket
        room.ask(ticket)

    def called(self) -> None:
        self._job.task_called(self)

    def place(self, link: TaskExecutorLink, message: tasks_pb2.Task) -> None:
        """Give the task to a task executor; raises Unavailable where its stream is gone."""
        self._task_handle = link.submit(message, self, len(self.prompt))
        self._link = link
        if self._room is not None and self._ticket is not None and not self.attempt:
            self._room.charge_input(self._ticket, len(self.prompt))

    def release(self) -> None:
        """Free the work on the task executor, if any is left there, and its place in the queue."""
        if self._link is not None:
            self._link.cancel(self._task_handle)
            self._link = None
        self._leave_room()

    def _leave_room(self) -> None:
        ticket, self._ticket = self._ticket, None
        if self._room is not None and ticket is not None:
            self._room.leave(ticket)

    # ── what the link tells ──────────────────────────────────────────────────────────────────

    def accepted(self) -> None:
        self._job.task_accepted(self)

    def take(self, first_index: int, token_id: int, logprob: float) -> None:
        self._fail_on_text()

    def alternatives(self, index: int, token_ids: list[int], logprobs: list[float]) -> None:
        self._fail_on_text()

    def prompt_logprobs(self, told: tasks_pb2.PromptLogprobs) -> None:
        self._fail_on_text()

    def take_vector(self, values: bytes) -> None:
        if self._is_done:
            return
        self._is_done = True  # the end that follows tells nothing new
        self._link = None
        self._leave_room()
        if values and not len(values) % VALUE_BYTES:
            self._job.task_done(self, values)
        else:
            self._job.task_failed(self, Internal("what came is no vector"), "")

    def finished(self, end: tasks_pb2.TaskFinished) -> None:
        if self._is_done:
            return
        if end.reason == types.FINISH_REASON_ERROR:
            self.lost(from_proto(end.error))
        elif end.reason == types.FINISH_REASON_CANCELLED:
            # We hear nothing of tasks that we cancelled, so the task executor did.
            self.lost(Unavailable("the task executor cancelled the task"))
        else:
            self.lost(Internal("the task ended without its vector"))

    def lost(self, error: DeepFlowError) -> None:
        if self._is_done:
            return
        where = self._link.id if self._link is not None else ""
        self._link = None
        self._job.task_failed(self, error, where)

    def _fail_on_text(self) -> None:
        if not self._is_done:
            self.release()
            self._job.task_failed(self, Internal("tokens came where a vector was due"), "")


def shorten(values: bytes, dimensions: int) -> bytes:
    """The first numbers of a little-endian fp32 vector, at length one again."""
    numbers = array("f", values[: VALUE_BYTES * dimensions])
    if sys.byteorder == "big":
        numbers.byteswap()
    length = math.hypot(*numbers)
    if length:
        numbers = array("f", [number / length for number in numbers])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
