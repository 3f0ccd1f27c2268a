"""All task executors of the view, and which of them can take a task."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from deepflow.errors import Unavailable
from deepflow.v1 import cluster_pb2, events_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.links.link import RETRY_SECONDS, TaskExecutorLink
from services.job_executor.scheduling.capacity import Rows, has_room, rows_for
from services.job_executor.scheduling.policy import GroupView, TaskExecutorLoad

MakeLink = Callable[[cluster_pb2.Member], TaskExecutorLink]

SETTLE_SECONDS_MAX = 1.0
SETTLE_POLL_SECONDS = 0.02

# Where a task executor that we are linked to may stand; only a READY one gets new tasks.
_LINKED_STATES = (types.LIFECYCLE_STATE_READY, types.LIFECYCLE_STATE_DRAINING)


class Links:
    """Keeps one link per task executor that is ready and holds a deployment.

    A link that the view no longer has stays until its tasks have ended: the view may be wrong
    about a process, the stream to it never is.
    """

    def __init__(self, make_link: MakeLink) -> None:
        self._make_link = make_link
        self._links: dict[str, TaskExecutorLink] = {}
        self._leaving: list[TaskExecutorLink] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._num_job_executors = 1

    def __iter__(self) -> Iterator[TaskExecutorLink]:
        return iter(self._links.values())

    @property
    def num_live(self) -> int:
        return sum(link.is_live for link in self)

    def adopt(self, members: list[cluster_pb2.Member]) -> None:
        self._num_job_executors = max(1, sum(_shares(member) for member in members))
        wanted = {member.id: member for member in members if _can_be_linked(member)}
        for name, link in list(self._links.items()):
            member = wanted.get(name)
            if member is None or not _is_same_process(member, link.member):
                self._leaving.append(self._links.pop(name))
        for name, member in wanted.items():
            if name in self._links:
                self._links[name].member = member
            elif member.state == types.LIFECYCLE_STATE_READY:
                self._links[name] = self._make_link(member)
                self._links[name].start()
        self._close_idle()

    def note_heartbeat(self, beat: events_pb2.Heartbeat) -> None:
        link = self._links.get(beat.id)
        if link is not None:
            link.note_load(beat.load)
        self._close_idle()

    def get(self, task_executor_id: str) -> TaskExecutorLink:
        return self._links[task_executor_id]

    async def settle(self, model: str) -> None:
        """Wait for links that are being made: the first request after a scale-up finds them."""
        fresh = [link for link in self if link.member.deployment == model]
        if any(self._serving(model)) or all(link.settled.is_set() for link in fresh):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS_MAX):
                await asyncio.gather(*(link.settled.wait() for link in fresh))

    async def settle_beside(self, model: str, excluded: frozenset[str]) -> None:
        """Wait a moment for somebody else: who is replaced one by one is linked one by one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS_MAX):
                while True:
                    if any(link.id not in excluded for link in self._serving(model)):
                        return
                    await asyncio.sleep(SETTLE_POLL_SECONDS)

    def has_room(self, model: str) -> bool:
        """Whether any task executor of `model` can use one more task now."""
        return any(self._has_room(link) for link in self._serving(model))

    def rows(self, model: str) -> Rows:
        """Of all task executors of `model` together."""
        total = taken = 0
        for link in self._serving(model):
            others = link.occupancy.others
            total += rows_for(link.capacity, others, self._num_job_executors)
            taken += len(link.tasks)
        return Rows(total, taken)

    def group_view(self, model: str, excluded: frozenset[str] = frozenset()) -> GroupView:
        """Those with room; all where none has any, for a task that had its turn already.

        Raises Unavailable where nobody can take a task of `model`.
        """
        serving = [link for link in self._serving(model) if link.id not in excluded]
        loads = tuple(
            TaskExecutorLoad(link.id, len(link.tasks), link.reported, link.outstanding_at_report)
            for link in [link for link in serving if self._has_room(link)] or serving
        )
        if not loads:
            raise Unavailable(
                f"no task executor serves {model} right now",
                reason="no_task_executor",
                retry_after_seconds=RETRY_SECONDS,
            )
        return GroupView(loads)

    def tokens_max(self, model: str) -> int | None:
        """What every task executor of `model` can hold of one sequence; None where unknown."""
        limits = (link.member.capabilities.max_tokens for link in self._serving(model))
        return min((limit for limit in limits if limit), default=None)

    def capabilities(self, model: str) -> list[cluster_pb2.Capabilities]:
        """Of every task executor of `model`."""
        return [link.member.capabilities for link in self._serving(model)]

    async def close(self) -> None:
        for link in (*self, *self._leaving):
            await link.close()
        for task in list(self._closing):
            await task

    def _serving(self, model: str) -> Iterator[TaskExecutorLink]:
        for link in self:
            member = link.member
            is_ready = link.is_live and member.state == types.LIFECYCLE_STATE_READY
            if is_ready and member.deployment == model:
                yield link

    def _has_room(self, link: TaskExecutorLink) -> bool:
        return has_room(link.capacity, link.occupancy, self._num_job_executors)

    def _close_idle(self) -> None:
        idle = [link for link in self._leaving if not (link.is_live and link.tasks)]
        for link in idle:
            self._leaving.remove(link)
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _can_be_linked(member: cluster_pb2.Member) -> bool:
    is_executor = member.kind == types.MEMBER_KIND_TASK_EXECUTOR
    return is_executor and bool(member.deployment) and member.state in _LINKED_STATES


def _shares(member: cluster_pb2.Member) -> bool:
    """Whether it is a job executor that gets jobs, and so part of every task executor."""
    is_ready = member.state == types.LIFECYCLE_STATE_READY
    return member.kind == types.MEMBER_KIND_JOB_EXECUTOR and is_ready


def _is_same_process(one: cluster_pb2.Member, other: cluster_pb2.Member) -> bool:
    return (one.incarnation, one.address) == (other.incarnation, other.address)
