"""Explicit contexts in the engine: computed like a prompt without an answer, then kept by name."""

from array import array

import msgspec

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import (
    ContextAnswer,
    ContextFacts,
    DropContext,
    Finished,
    KeepContext,
    ListContexts,
    StepOutput,
    Submit,
)
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.cache import RelationalTensorCache
from services.task_executor.flowserve.rtc.contexts import ID_LENGTH_MAX, Context, ContextsFull
from services.task_executor.flowserve.scheduler.scheduler import Scheduler

TTL_SECONDS_MAX = 30 * 24 * 3600.0
PARAM = "context_cache_id"


class ContextKeeper:
    def __init__(
        self, config: EngineConfig, cache: RelationalTensorCache, scheduler: Scheduler
    ) -> None:
        self._config = config
        self._cache = cache
        self._scheduler = scheduler
        self._computing: dict[int, KeepContext] = {}  # by handle
        self._answers: list[ContextAnswer] = []
        # The longest sequence must still fit beside what is pinned, or it could never end.
        self._pin_room = config.usable_blocks - config.blocks_for(config.max_tokens)

    def obey(self, message: KeepContext | DropContext | ListContexts, now: float) -> None:
        if isinstance(message, KeepContext):
            self._keep(message, now)
        elif isinstance(message, DropContext):
            self._drop(message, now)
        else:
            self._answers.append(ContextAnswer(message.handle, self._list(message, now)))

    def resolve(self, message: Submit, now: float) -> Submit | None:
        """With the context's tokens in front; None, and refused, where there is no such context."""
        context = self._cache.match_by_id(message.cache_salt, message.context_id, now)
        if context is None:
            why = f"{PARAM} {message.context_id[:ID_LENGTH_MAX]!r} is not kept here, or has expired"
            self._scheduler.refuse(message, why, invalid=True, param=PARAM)
            return None
        tokens = context.token_ids.tolist() + message.prompt_token_ids
        return msgspec.structs.replace(message, prompt_token_ids=tokens, context_id="")

    def take(self, output: StepOutput | None, now: float) -> StepOutput | None:
        """The report with the answers about contexts, and without the sequences that made them."""
        if output is not None and self._computing:
            output = self._without_own(output, now)
        if not self._answers:
            return output
        output = output or self._scheduler.take_output(is_forced=True)
        assert output is not None
        answers, self._answers = self._answers, []
        return msgspec.structs.replace(output, contexts=answers)

    def _keep(self, message: KeepContext, now: float) -> None:
        if fault := _fault(message):
            self._refuse(message.handle, fault[1], invalid=True, param=fault[0])
            return
        self._computing[message.handle] = message
        nothing = SamplingParams(max_tokens=0)
        submit = Submit(message.handle, message.token_ids, nothing, cache_salt=message.cache_salt)
        self._scheduler.submit(submit, now=now)

    def _drop(self, message: DropContext, now: float) -> None:
        """Also one that is being computed, or it would come back."""
        name = (message.cache_salt, message.context_id)
        computing = [
            handle
            for handle, it in self._computing.items()
            if (it.cache_salt, it.context_id) == name
        ]
        if not computing and self._cache.match_by_id(*name, now) is None:
            why = f"there is no context {message.context_id[:ID_LENGTH_MAX]!r}"
            self._refuse(message.handle, why, invalid=True, param=PARAM)
            return
        self._scheduler.cancel(computing)
        self._cache.drop_context(*name)
        self._answers.append(ContextAnswer(message.handle, []))

    def _list(self, message: ListContexts, now: float) -> list[ContextFacts]:
        if message.is_every_tenant:  # to count the bytes of all would hold up a step
            return [self._facts(it, now, 0) for it in self._cache.list_all_contexts(now)]
        contexts = self._cache.list_contexts(message.cache_salt, now)
        return [self._facts(it, now, self._bytes_of(it)) for it in contexts]

    def _without_own(self, output: StepOutput, now: float) -> StepOutput:
        own = set(self._computing)
        for end in output.finished:
            if end.handle in own:
                self._finish(self._computing.pop(end.handle), end, now)
        return msgspec.structs.replace(
            output,
            accepted=[it for it in output.accepted if it not in own],
            started=[it for it in output.started if it.handle not in own],
            finished=[it for it in output.finished if it.handle not in own],
        )

    def _finish(self, message: KeepContext, end: Finished, now: float) -> None:
        if end.reason != "length":
            why = end.message or "the context was cancelled while it was computed"
            self._refuse(message.handle, why, invalid=end.invalid, busy=end.busy)
            return
        context = self._context(message, now)
        try:
            pin_room = self._pin_room if message.is_pinned else None
            self._cache.keep_context(context, pin_room=pin_room, now=now)
        except ContextsFull as error:
            self._refuse(message.handle, str(error), busy=True)
            return
        facts = self._facts(context, now, self._bytes_of(context))
        self._answers.append(
            ContextAnswer(message.handle, [facts], cached_tokens=end.cached_tokens)
        )

    def _context(self, message: KeepContext, now: float) -> Context:
        root = self._config.identity_seed(message.cache_salt).root()
        chain = BlockChain(root, self._config.block_size)
        chain.extend(message.token_ids)
        tokens = array("I", message.token_ids)
        expires = now + message.ttl_seconds
        return Context(message.context_id, message.cache_salt, tokens, chain, expires)

    def _bytes_of(self, context: Context) -> int:
        config = self._config
        return self._cache.blocks_of(context) * (config.kv_bytes // config.kv_blocks)

    def _facts(self, context: Context, now: float, bytes_used: int) -> ContextFacts:
        return ContextFacts(
            context_id=context.context_id,
            num_tokens=len(context.token_ids),
            bytes_used=bytes_used,
            seconds_left=max(0.0, context.expires - now),
            is_pinned=context.is_pinned,
            cache_salt=context.cache_salt,
        )

    def _refuse(
        self, handle: int, why: str, *, invalid: bool = False, param: str = "", busy: bool = False
    ) -> None:
        self._answers.append(ContextAnswer(handle, [], why, invalid, param, busy))


def _fault(message: KeepContext) -> tuple[str, str] | None:
    """The field that is wrong, and why."""
    if not 1 <= len(message.context_id) <= ID_LENGTH_MAX:
        return PARAM, f"{PARAM} has {len(message.context_id)} characters, not 1 to {ID_LENGTH_MAX}"
    if not 0 < message.ttl_seconds <= TTL_SECONDS_MAX:  # so is a NaN caught
        return "ttl", f"ttl is {message.ttl_seconds:g} s, but must be in (0, {TTL_SECONDS_MAX:g}]"
    return None
