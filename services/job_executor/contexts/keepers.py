"""The task executors as keepers of contexts: asked to keep, to drop, and what they keep."""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass

from deepflow.errors import Cancelled, DeepFlowError, Unavailable
from deepflow.v1 import contexts_pb2
from deepflow.v1.contexts_pb2_grpc import ContextKeeperServiceStub
from services.job_executor.links.link import RETRY_SECONDS, TaskExecutorLink
from services.job_executor.links.links import Links

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one tenant's contexts, by id."""

    bytes_by_id: dict[str, int]
    is_certain: bool  # everybody was asked, and answered

    def state_of(self, context_id: str) -> contexts_pb2.ContextState.ValueType:
        if context_id in self.bytes_by_id:
            return contexts_pb2.CONTEXT_STATE_READY
        if self.is_certain:
            return contexts_pb2.CONTEXT_STATE_COLD
        return contexts_pb2.CONTEXT_STATE_UNKNOWN


class Keepers:
    def __init__(self, links: Links) -> None:
        self._links = links

    def block_size(self, task_executor_id: str) -> int:
        """0 where that one is gone."""
        link = self._find(task_executor_id)
        return link.member.capabilities.block_size if link is not None else 0

    def incarnation(self, task_executor_id: str) -> int:
        """0 where that one is gone."""
        link = self._find(task_executor_id)
        return link.incarnation if link is not None else 0

    def is_alive(self, task_executor_id: str, incarnation: int) -> bool:
        return bool(incarnation) and self.incarnation(task_executor_id) == incarnation

    async def keep(
        self, task_executor_id: str, request: contexts_pb2.KeepContextRequest, seconds_max: float
    ) -> contexts_pb2.KeepContextResponse:
        """Raises what it refuses it with; Unavailable where it is gone, also over this."""
        link = self._find(task_executor_id)
        if link is None:
            raise _lost(task_executor_id)
        stub = ContextKeeperServiceStub(link.peer.channel)
        try:
            return await link.peer.call(stub.KeepContext, request, timeout_seconds=seconds_max)
        except Cancelled as error:
            raise _lost(task_executor_id) from error
        except asyncio.CancelledError as error:
            # So ends a call whose link was closed, too; only our own end must go on.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _lost(task_executor_id) from error

    async def drop(self, cache_salt: bytes, context_id: str) -> None:
        """Everywhere. Who does not hear of it is told when he is back (see orphans.py)."""
        request = contexts_pb2.DropContextRequest(context_id=context_id, cache_salt=cache_salt)

        async def drop_at(link: TaskExecutorLink) -> None:
            stub = ContextKeeperServiceStub(link.peer.channel)
            try:
                await link.peer.call(
                    stub.DropContext, request, timeout_seconds=ASK_SECONDS, idempotent=True
                )
            except DeepFlowError as error:
                log.info("task executor %s may keep %s: %s", link.id, context_id, error)

        await asyncio.gather(*(drop_at(link) for link in self._live))

    async def kept(self, cache_salt: bytes) -> Kept:
        """Of one tenant, on all task executors together."""
        request = contexts_pb2.ListKeptContextsRequest(cache_salt=cache_salt)
        live = self._live
        answers = await asyncio.gather(*(self._ask(link, request) for link in live))
        bytes_by_id: defaultdict[str, int] = defaultdict(int)
        for link, answer in zip(live, answers, strict=True):
            for context in answer.contexts if answer is not None else ():
                # One may be known there by its name alone, when all of its KV was thrown out.
                if context.kv_bytes or context.num_tokens < link.capacity.block_size:
                    bytes_by_id[context.context_id] += context.kv_bytes
        return Kept(dict(bytes_by_id), all(answer is not None for answer in answers))

    async def kept_of_everybody(
        self, task_executor_ids: set[str] | None
    ) -> dict[str, set[tuple[bytes, str]]]:
        """Salts and ids of all tenants' contexts, by who keeps them; None asks all who are there.

        Who does not answer is left out.
        """
        request = contexts_pb2.ListKeptContextsRequest(every_tenant=True)
        asked = [it for it in self._live if task_executor_ids is None or it.id in task_executor_ids]
        answers = await asyncio.gather(*(self._ask(link, request) for link in asked))
        return {
            link.id: {(it.cache_salt, it.context_id) for it in answer.contexts}
            for link, answer in zip(asked, answers, strict=True)
            if answer is not None
        }

    async def _ask(
        self, link: TaskExecutorLink, request: contexts_pb2.ListKeptContextsRequest
    ) -> contexts_pb2.ListKeptContextsResponse | None:
        stub = ContextKeeperServiceStub(link.peer.channel)
        try:
            return await link.peer.call(stub.ListKeptContexts, request, timeout_seconds=ASK_SECONDS)
        except DeepFlowError as error:
            log.info("task executor %s does not say what it keeps: %s", link.id, error)
            return None

    def _find(self, task_executor_id: str) -> TaskExecutorLink | None:
        return next((link for link in self._links if link.id == task_executor_id), None)

    @property
    def _live(self) -> list[TaskExecutorLink]:
        return [link for link in self._links if link.is_live]


def _lost(task_executor_id: str) -> Unavailable:
    return Unavailable(
        f"task executor {task_executor_id} went away",
        reason="task_executor_lost",
        retry_after_seconds=RETRY_SECONDS,
    )
