"""ContextKeeperService: contexts that the engine keeps by name, asked for by job executors."""

import asyncio
import contextlib
import itertools
from typing import Any

from deepflow.errors import DeepFlowError, Internal, InvalidRequest, RateLimited, Unavailable
from deepflow.lifecycle import Lifecycle
from deepflow.v1 import contexts_pb2
from deepflow.v1 import types_pb2 as types
from deepflow.v1.contexts_pb2_grpc import ContextKeeperServiceServicer
from services.task_executor.flowserve.messages import (
    ContextAnswer,
    ContextFacts,
    ContextRequest,
    DropContext,
    KeepContext,
    ListContexts,
    StepOutput,
)
from services.task_executor.shell.engine import EngineProcess

# Questions about contexts that the engine may have at one time.
ASKED_MAX = 64
RETRY_SECONDS = 1.0

# Streams of job executors are numbered from 1 in the upper half of an engine handle, so no handle
# of theirs is below this.
_HANDLES = 1 << 32


class ContextDesk(ContextKeeperServiceServicer):
    """Each answer of the engine goes to the call that waits for it."""

    def __init__(self, engine: EngineProcess, lifecycle: Lifecycle) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._handles = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ContextAnswer]] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def deliver(self, output: StepOutput) -> None:
        for answer in output.contexts:
            future = self._waiting.get(answer.handle)
            if future is not None and not future.done():
                future.set_result(answer)

    def fail_all(self, error: DeepFlowError) -> None:
        """The engine is gone, and what it kept with it."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    async def KeepContext(
        self, request: contexts_pb2.KeepContextRequest, context: Any
    ) -> contexts_pb2.KeepContextResponse:
        self._require_model(request.model)
        answer = await self._ask(
            KeepContext(
                handle=self._new_handle(),
                context_id=request.context_id,
                token_ids=list(request.token_ids),
                ttl_seconds=request.ttl_seconds,
                cache_salt=request.cache_salt,
                is_pinned=request.is_pinned,
            )
        )
        return contexts_pb2.KeepContextResponse(
            kept=_to_proto(answer.contexts[0]), cached_tokens=answer.cached_tokens
        )

    async def DropContext(
        self, request: contexts_pb2.DropContextRequest, context: Any
    ) -> contexts_pb2.DropContextResponse:
        drop = DropContext(self._new_handle(), request.context_id, request.cache_salt)
        if self._engine.deployment:
            with contextlib.suppress(InvalidRequest):  # there is none
                await self._ask(drop)
        return contexts_pb2.DropContextResponse()

    async def ListKeptContexts(
        self, request: contexts_pb2.ListKeptContextsRequest, context: Any
    ) -> contexts_pb2.ListKeptContextsResponse:
        if not self._engine.deployment:
            return contexts_pb2.ListKeptContextsResponse()
        handle = self._new_handle()
        answer = await self._ask(ListContexts(handle, request.cache_salt, request.every_tenant))
        return contexts_pb2.ListKeptContextsResponse(contexts=map(_to_proto, answer.contexts))

    async def _ask(self, message: ContextRequest) -> ContextAnswer:
        """Raises what the engine refuses it with. Whoever waits no longer frees its work."""
        if len(self._waiting) >= ASKED_MAX:
            raise RateLimited(
                f"{ASKED_MAX} questions about contexts wait for the engine already",
                reason="task_executor_full",
                retry_after_seconds=RETRY_SECONDS,
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting[message.handle] = future
        try:
            self._engine.submit(message)
            answer: ContextAnswer = await future
        except asyncio.CancelledError:
            self._engine.cancel([message.handle])
            raise
        finally:
            del self._waiting[message.handle]
        if error := _error_of(answer):
            raise error
        return answer

    def _new_handle(self) -> int:
        return next(self._handles) % _HANDLES

    def _require_model(self, model: str) -> None:
        if self._lifecycle.state != types.LIFECYCLE_STATE_READY:
            raise Unavailable(
                f"this task executor is {self._lifecycle.word}", retry_after_seconds=RETRY_SECONDS
            )
        if model != self._engine.deployment:
            raise Unavailable(
                f"this task executor holds {self._engine.deployment!r}, not {model!r}",
                retry_after_seconds=RETRY_SECONDS,
            )


def _error_of(answer: ContextAnswer) -> DeepFlowError | None:
    if not answer.message:
        return None
    if answer.invalid:
        return InvalidRequest(answer.message, param=answer.param)
    if answer.busy:
        return Unavailable(
            answer.message, reason="context_cache_full", retry_after_seconds=RETRY_SECONDS
        )
    return Internal(answer.message)


def _to_proto(facts: ContextFacts) -> contexts_pb2.KeptContext:
    return contexts_pb2.KeptContext(
        context_id=facts.context_id,
        num_tokens=facts.num_tokens,
        kv_bytes=facts.bytes_used,
        seconds_left=facts.seconds_left,
        is_pinned=facts.is_pinned,
        cache_salt=facts.cache_salt,
    )
