"""The links to all job executors of the view, and which of them gets the next job."""

import asyncio

from deepflow.errors import Unavailable
from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from services.gateway.config import GatewayConfig
from services.gateway.links.link import RETRY_AFTER_SECONDS, JobExecutorLink


class Links:
    """Follows the view: one link to every READY job executor."""

    def __init__(self, config: GatewayConfig, hello: jobs.JobsHello) -> None:
        self._config = config
        self._hello = hello
        self._links: dict[str, JobExecutorLink] = {}
        self._retired: set[JobExecutorLink] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def up_count(self) -> int:
        return sum(link.is_up for link in self._links.values())

    @property
    def up(self) -> list[JobExecutorLink]:
        """Also those that take no new job and still have some."""
        return [link for link in (*self._links.values(), *self._retired) if link.is_up]

    def follow(self, job_executors: dict[str, cluster.Member]) -> None:
        """A member that is no longer READY, or was started anew, loses its link."""
        for member_id, link in list(self._links.items()):
            member = job_executors.get(member_id)
            if member is None or not _can_work(member) or _is_another_life(member, link.member):
                self._retire(self._links.pop(member_id))
        for member_id, member in job_executors.items():
            if _can_work(member) and member_id not in self._links:
                self._links[member_id] = self._open(member)

    async def least_loaded(self) -> JobExecutorLink:
        """Waits a moment for one where there is none: they are replaced one after another."""
        try:
            async with asyncio.timeout(self._config.link_wait_seconds_max):
                while not (up := [link for link in self._links.values() if link.is_up]):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise Unavailable(
                "no job executor is ready; try again in a moment",
                reason="no_job_executor",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from error
        return min(up, key=lambda link: len(link.runs))

    async def close(self) -> None:
        everything = [*self._links.values(), *self._retired]
        await asyncio.gather(*(link.close() for link in everything), *self._closing)

    def _open(self, member: cluster.Member) -> JobExecutorLink:
        link = JobExecutorLink(
            member,
            token=self._config.cluster_token,
            hello=self._hello,
            hello_seconds_max=self._config.link_hello_seconds_max,
            on_change=self._on_change,
        )
        link.start()
        return link

    def _retire(self, link: JobExecutorLink) -> None:
        link.is_retired = True
        self._retired.add(link)
        self._close_idle()

    def _on_change(self) -> None:
        self._changed.set()
        self._close_idle()

    def _close_idle(self) -> None:
        for link in [link for link in self._retired if not link.is_busy or not link.is_up]:
            self._retired.discard(link)
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _can_work(member: cluster.Member) -> bool:
    return member.state == types.LIFECYCLE_STATE_READY


def _is_another_life(member: cluster.Member, known: cluster.Member) -> bool:
    return (member.incarnation, member.address) != (known.incarnation, known.address)
