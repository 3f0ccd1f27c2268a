"""One job: prepared, placed, admitted, streamed, ended. Every end is told exactly once."""

import logging
from collections.abc import Callable

from deepflow import clock
from deepflow.errors import (
    Cancelled,
    DeepFlowError,
    RateLimited,
    Unavailable,
    to_proto,
)
from deepflow.v1 import jobs_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.contexts.recall import UsedContext
from services.job_executor.jobs.choice import Choice
from services.job_executor.jobs.life import JobLife
from services.job_executor.jobs.outbox import Outbox
from services.job_executor.jobs.parts import Parts
from services.job_executor.jobs.planning import (
    Limits,
    PlannedTask,
    kind_of,
    make_task,
    plan,
    returns_prompt,
)
from services.job_executor.jobs.returned_prompt import ReturnedPrompt
from services.job_executor.jobs.sampling import ending_ids
from services.job_executor.jobs.token_log import JobLog
from services.job_executor.prompt_tree.matcher import PromptBlocks
from services.job_executor.scheduling.policy import RequestFeatures
from services.job_executor.scheduling.ticket import Ticket, rank_of, weight_of
from services.job_executor.tokenizer.detokenizer import Detokenizer
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import ModelTokenizer
from services.job_executor.tokenizer.token_bytes import TokenBytes
from services.job_executor.tools.answer import AnswerCalls
from services.job_executor.tools.use import ToolUse, use_tools

log = logging.getLogger(__name__)

# How answers end whose prompt was computed, and which nobody cut.
_WHOLE = (types.FINISH_REASON_STOP, types.FINISH_REASON_LENGTH, types.FINISH_REASON_TOOL_CALLS)


class Job:
    """Ends in a refusal before its admission, in the end of every choice after it."""

    def __init__(
        self,
        submit: jobs_pb2.SubmitJob,
        outbox: Outbox,
        parts: Parts,
        on_end: Callable[["Job"], None],
        *,
        gateway_id: str = "",
    ) -> None:
        self.handle = submit.handle
        self.outbox = outbox
        self._request = submit.job
        self._window = submit.token_window
        self._parts = parts
        self._on_end = on_end
        self._choices: list[Choice] = []
        self._planned: list[PlannedTask] = []
        self._blocks: list[PromptBlocks] = []  # of each planned task's prompt
        self._tools: ToolUse | None = None
        self._context: UsedContext | None = None
        self._num_accepted = 0
        self._num_sent = 0
        kind = kind_of(submit.job)
        self._life = JobLife(submit, outbox, parts, kind, gateway_id, self._end_all)

    @property
    def is_admitted(self) -> bool:
        return self._life.is_admitted

    def start(self) -> None:
        """Begin; all that follows is told through the outbox."""
        self._life.start(self._prepare)

    def cancel(self) -> None:
        """The gateway wants no more: free the work at once."""
        self._end_all(Cancelled("the job was cancelled"))

    def credit(self, choice_index: int, delivered_tokens: int) -> None:
        if choice_index < len(self._choices):
            self._choices[choice_index].credit(delivered_tokens)

    # ── on the way to admission ──────────────────────────────────────────────────────────────

    async def _prepare(self) -> None:
        model = await self._parts.library.get(self._request.model)
        await self._parts.links.settle(model.name)
        limits = Limits(self._parts.tasks_per_job_max, self._parts.tokens_max(model))
        self._context = await self._parts.contexts.join(self._request)
        self._tools = await use_tools(self._request, model, self._parts.pool)
        self._planned = await plan(self._request, model, self._parts.pool, limits)
        if self._context is not None:
            self._context.look_at(planned.prompt for planned in self._planned)
        self._blocks = await self._parts.matcher.identify(
            model.name,
            [planned.prompt for planned in self._planned],
            self._request.context.cache_salt,
        )
        self._make_choices(model)
        # A prompt counts once, however many choices it has: as in the answer's usage.
        each = self._planned[:: max(self._request.n, 1)]
        self._life.arrived(sum(len(task.prompt) for task in each))
        self._ask_for_places()

    def _make_choices(self, model: ServedModel) -> None:
        sampling, tokenizer = self._request.sampling, model.tokenizer
        ends = ending_ids(sampling, model.deployment.facts)
        for planned in self._planned:
            choice = Choice(
                self,
                planned.choice_index,
                planned.prompt,
                detokenizer=self._new_detokenizer(tokenizer, ends),
                stops=list(sampling.stop),
                window=self._window,
                min_tokens=sampling.min_tokens,
                details=tokenizer.token_bytes if sampling.HasField("logprobs") else None,
                returned=self._returned_prompt(planned, tokenizer.token_bytes),
                calls=self._new_calls(planned.choice_index),
            )
            choice.resume(planned.resume)
            self._choices.append(choice)
            self._life.story.choices.append(choice.story)

    def _new_detokenizer(self, tokenizer: ModelTokenizer, ends: frozenset[int]) -> Detokenizer:
        shows_special = self._request.sampling.show_special_tokens
        detokenizer = tokenizer.new_detokenizer(shows_special=shows_special, ends=ends)
        return self._tools.detokenizer(detokenizer) if self._tools is not None else detokenizer

    def _new_calls(self, choice_index: int) -> AnswerCalls | None:
        return self._tools.new_calls(self.handle, choice_index) if self._tools is not None else None

    def _returned_prompt(self, planned: PlannedTask, spell: TokenBytes) -> ReturnedPrompt | None:
        if not returns_prompt(self._request):
            return None
        wants_logprobs = self._request.sampling.HasField("prompt_logprobs")
        return ReturnedPrompt(planned.prompt, planned.text, spell, wants_logprobs=wants_logprobs)

    def _ask_for_places(self) -> None:
        request, room = self._request, self._parts.room
        weight, rank = weight_of(request.tenant_weight), rank_of(request.context)
        for choice in self._choices:
            if choice.log.finish is not None:
                choice.accepted()  # what the client holds already ends in a stop string
                continue
            ticket = Ticket(choice, request.model, request.context.tenant, weight, rank)
            choice.ask(room, ticket)
            if self._life.is_over:
                return
        self._life.wait_if_due()

    def _place(self, choice: Choice, excluded: frozenset[str] = frozenset()) -> None:
        """Raises Unavailable where no task executor can take it."""
        planned = self._planned[choice.index]
        links = self._parts.links
        group = links.group_view(self._request.model, excluded)
        group = self._parts.matcher.show(group, self._blocks[choice.index])
        if self._context is not None:
            group = self._parts.contexts.show(group, self._context, planned.prompt)
        features = RequestFeatures(self._request.model, len(planned.prompt), planned.max_tokens)
        placement = self._parts.policy.choose(features, group)
        task = make_task(self._request, planned, choice.attempt, self._life.span.context)
        tokens = group.uncached(placement.task_executor_id, planned.num_tokens)
        choice.place(links.get(placement.task_executor_id), task, tokens)
        log.debug("task %s on %s: %s", task.id, placement.task_executor_id, placement.explanation)

    # ── what its choices tell ────────────────────────────────────────────────────────────────

    def choice_called(self, choice: Choice) -> None:
        self._life.called()
        try:
            self._place(choice)
        except DeepFlowError as error:
            self._fail(error)
        except Exception:  # who calls has others to call
            self._fail(self._life.our_mistake())

    def choice_accepted(self) -> None:
        self._num_accepted += 1
        life = self._life
        if life.is_admitted or life.is_over or not self._are_all_accepted:
            return
        life.admitted()
        for choice in self._choices:
            choice.open()

    @property
    def _are_all_accepted(self) -> bool:
        """Whoever waits for his turn is accepted later: one that runs shows that all can."""
        num_waiting = sum(choice.is_waiting for choice in self._choices)
        return self._num_accepted + num_waiting == len(self._choices)

    def choice_failed(self, choice: Choice, error: DeepFlowError, where: str = "") -> None:
        """Place the task anew while nothing came of the job; otherwise the job has failed."""
        if self._life.is_over or choice.log.finish is not None:
            return
        if self._can_retry(choice, error):
            choice.attempt += 1
            if choice.is_accepted and not self.is_admitted:
                choice.is_accepted = False
                self._num_accepted -= 1
            self._life.place_anew(
                lambda excluded: self._place(choice, excluded), self._fail, error, where
            )
            return
        self._fail(error)

    def choice_sent(self) -> None:
        self._num_sent += 1
        if self._num_sent == len(self._choices):
            self._close()

    def _can_retry(self, choice: Choice, error: DeepFlowError) -> bool:
        has_attempts = choice.attempt + 1 < self._parts.placement_attempts_max
        is_untouched = not choice.num_new_tokens
        return has_attempts and is_untouched and isinstance(error, Unavailable | RateLimited)

    # ── how it ends ──────────────────────────────────────────────────────────────────────────

    def _fail(self, error: DeepFlowError) -> None:
        """Tokens that were made are still delivered, then every choice ends with the error."""
        if not self.is_admitted:
            self._end_all(error)
            return
        self._life.failed(error)
        for choice in self._choices:
            choice.fail(error)

    def _end_all(self, error: DeepFlowError) -> None:
        """End now; nothing that waits for credit is delivered any more."""
        if self._life.is_over:
            return
        self._life.failed(error)
        if self.is_admitted:
            for choice in self._choices:
                choice.abandon(error)
            return
        for choice in self._choices:
            choice.release()
        refused = jobs_pb2.JobRefused(handle=self.handle, error=to_proto(error))
        self.outbox.answer(jobs_pb2.JobsResponse(refused=refused))
        self._close()

    def drop(self) -> None:
        """The stream is gone: free everything, tell nobody."""
        for choice in self._choices:
            choice.release()
        self._life.lost_its_gateway()
        self._close()

    def _close(self) -> None:
        if self._life.is_over:
            return
        self._life.end()
        self._note_context()
        if self.is_admitted:
            logs = tuple(choice.log for choice in self._choices)
            self._parts.ended.keep(JobLog(self._request.id, logs), clock.monotonic())
        self._on_end(self)

    def _note_context(self) -> None:
        """How much of it each answer found."""
        if self._context is None:
            return
        is_scored = self._request.sampling.HasField("prompt_logprobs")
        for choice in self._choices:
            finish, where = choice.log.finish, choice.story.task_executor_id
            if finish is not None and where and finish.reason in _WHOLE:
                cached = finish.usage.cached_tokens
                self._parts.contexts.used(
                    self._context, where, choice.prompt, cached, is_scored=is_scored
                )
