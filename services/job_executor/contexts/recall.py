"""Contexts as jobs see them: found by id, and kept anew where a use shows that they were lost."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from deepflow import clock
from deepflow.background import end
from deepflow.errors import DeepFlowError, NotFound, Unavailable
from deepflow.v1 import contexts_pb2, jobs_pb2
from services.job_executor import metrics
from services.job_executor.contexts import prefix, rules
from services.job_executor.contexts.expansion import expand
from services.job_executor.contexts.keepers import Keepers
from services.job_executor.contexts.placing import holders_of, prefer_holders, with_cached
from services.job_executor.contexts.records import ContextRecords
from services.job_executor.scheduling.policy import GroupView

log = logging.getLogger(__name__)

# Contents that need not be read again; the longest unused goes first.
CONTENTS_BYTES_MAX = 64 * 1024 * 1024
# Contexts that are being kept anew. One more is not: its next use sees it missing again.
RENEWALS_MAX = 16
RENEW_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class KnownContext:
    cache_salt: bytes
    record: contexts_pb2.ContextRecord
    content: contexts_pb2.ContextContent


class UsedContext:
    """A context that a job names, and which of the job's prompts begin with its tokens."""

    def __init__(self, known: KnownContext) -> None:
        self.record = known.record
        self.cache_salt = known.cache_salt
        self._begun: set[int] = set()  # ids of prompts that the job keeps alive

    def look_at(self, prompts: Iterable[list[int]]) -> None:
        """Each is looked at once, however many choices it has."""
        distinct = {id(prompt): prompt for prompt in prompts}
        self._begun = {it for it, one in distinct.items() if prefix.begins_with(one, self.record)}

    def begins(self, prompt: list[int]) -> bool:
        return id(prompt) in self._begun


class Contexts:
    def __init__(self, records: ContextRecords, keepers: Keepers) -> None:
        self._records = records
        self._keepers = keepers
        self._known: OrderedDict[tuple[bytes, str], KnownContext] = OrderedDict()
        self._num_bytes = 0
        self._renewals: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def close(self) -> None:
        await end(*self._renewals.values())

    async def join(self, job: jobs_pb2.Job) -> UsedContext | None:
        """Put the context that the job names before its input; None where it names none.

        Raises NotFound for one that its tenant does not have, InvalidRequest for one that does not
        fit, Unavailable where nobody can tell.
        """
        if not job.context_cache_id:
            return None
        known = await self._find(job.context.cache_salt, job.context_cache_id)
        rules.require_model(known.record, job.model)
        expand(job, known.content)
        return UsedContext(known)

    def show(self, group: GroupView, context: UsedContext, prompt: list[int]) -> GroupView:
        """Those of the candidates that should get it, and what each of them holds."""
        if not context.begins(prompt):
            return group
        hits = {it.id: self._expected_hit(context, it.id, prompt) for it in group.executors}
        maker, incarnation = context.record.kept_by, context.record.kept_by_incarnation
        if not holders_of(group, hits) and self._keepers.is_alive(maker, incarnation):
            # Its events may be on their way.
            group = with_cached(group, maker, hits.get(maker, 0))
        return prefer_holders(group, hits)

    def used(
        self,
        context: UsedContext,
        task_executor_id: str,
        prompt: list[int],
        cached_tokens: int,
        *,
        is_scored: bool,
    ) -> None:
        """So much of a prompt was found there. What should have been and was not is kept anew:
        the task executor is another one, or has lost it, and has just computed it.

        `is_scored`: all of it had to be computed, whatever is kept there.
        """
        if not context.begins(prompt):
            metrics.CONTEXT_USES.labels("parted").inc()
            return
        if cached_tokens >= self._expected_hit(context, task_executor_id, prompt):
            metrics.CONTEXT_USES.labels("hit").inc()
            return
        metrics.CONTEXT_USES.labels("recomputed").inc()
        if is_scored:
            return
        name = (task_executor_id, context.record.id)
        if name in self._renewals or len(self._renewals) >= RENEWALS_MAX:
            return
        tokens = prompt[: context.record.num_tokens]
        task = asyncio.create_task(self._renew(context, task_executor_id, tokens))
        self._renewals[name] = task
        task.add_done_callback(lambda _: self._renewals.pop(name, None))

    def _expected_hit(self, context: UsedContext, task_executor_id: str, prompt: list[int]) -> int:
        block_size = self._keepers.block_size(task_executor_id)
        return prefix.expected_hit(context.record.num_tokens, len(prompt), block_size)

    async def _find(self, cache_salt: bytes, context_id: str) -> KnownContext:
        """The record is always asked for, so that a deleted one is gone everywhere at once. While
        the store is away what is known here goes on."""
        if not rules.is_context_id(context_id):
            raise rules.not_found(context_id)
        key = (cache_salt, context_id)
        try:
            found = await self._read(cache_salt, context_id)
        except NotFound:
            self._forget(key)
            raise
        except Unavailable as error:
            known = self._known.get(key)
            if known is None:
                error.param = rules.ID_PARAM
                raise
            found = known
        if not rules.is_alive(found.record, clock.unix_ms()):
            self._forget(key)
            raise rules.not_found(context_id)
        self._remember(key, found)
        return found

    async def _read(self, cache_salt: bytes, context_id: str) -> KnownContext:
        record = await self._records.get(cache_salt, context_id)
        if record is None or not rules.is_alive(record, clock.unix_ms()):
            raise rules.not_found(context_id)
        known = self._known.get((cache_salt, context_id))
        if known is not None:
            return known
        content = await self._records.get_content(cache_salt, context_id)
        if content is None:
            raise rules.not_found(context_id)
        return KnownContext(cache_salt, record, content)

    def _remember(self, key: tuple[bytes, str], known: KnownContext) -> None:
        self._forget(key)
        self._known[key] = known
        self._num_bytes += known.record.content_bytes
        while self._num_bytes > CONTENTS_BYTES_MAX:
            self._forget(next(iter(self._known)))

    def _forget(self, key: tuple[bytes, str]) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._num_bytes -= known.record.content_bytes

    async def _renew(self, context: UsedContext, task_executor_id: str, tokens: list[int]) -> None:
        """A context that was deleted meanwhile must not come back."""
        record, salt = context.record, context.cache_salt
        seconds = (record.expires_unix_ms - clock.unix_ms()) / 1000
        if seconds <= 0:
            return
        try:
            request = keep_request(record, salt, tokens, seconds)
            await self._keepers.keep(task_executor_id, request, RENEW_SECONDS_MAX)
            if await self._records.get(salt, record.id) is None:
                await self._keepers.drop(salt, record.id)
        except DeepFlowError as error:
            log.info("the context %s was not kept anew: %s", record.id, error)


def keep_request(
    record: contexts_pb2.ContextRecord, cache_salt: bytes, tokens: list[int], seconds: float
) -> contexts_pb2.KeepContextRequest:
    return contexts_pb2.KeepContextRequest(
        model=record.model,
        context_id=record.id,
        cache_salt=cache_salt,
        token_ids=tokens,
        ttl_seconds=seconds,
        is_pinned=record.is_pinned,
    )
