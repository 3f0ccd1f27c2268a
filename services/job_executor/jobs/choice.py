"""One answer of a job: the tokens of one task become text, and wait for their credit."""

from typing import Protocol

from deepflow.errors import Cancelled, DeepFlowError, Internal, Unavailable, from_proto, to_proto
from deepflow.v1 import jobs_pb2, tasks_pb2
from deepflow.v1 import types_pb2 as types
from services.job_executor.jobs.details import Alternatives, Details
from services.job_executor.jobs.outbox import Columns, Outbox
from services.job_executor.jobs.returned_prompt import ReturnedPrompt
from services.job_executor.jobs.story import ChoiceStory
from services.job_executor.jobs.token_log import ChoiceLog
from services.job_executor.links.link import TaskExecutorLink
from services.job_executor.scheduling.ticket import Ticket
from services.job_executor.scheduling.waiting_room import WaitingRoom
from services.job_executor.tokenizer.detokenizer import Detokenizer
from services.job_executor.tokenizer.stop_matcher import new_stop_matcher
from services.job_executor.tokenizer.token_bytes import TokenBytes
from services.job_executor.tools.answer import AnswerCalls

# Tokens with details that one message carries of one choice.
DETAILED_TOKENS_MAX = 4096
_UNLIMITED = 1 << 62


class ChoiceOwner(Protocol):
    """The job behind a choice."""

    handle: int
    outbox: Outbox

    def choice_called(self, choice: "Choice") -> None:
        """It is its turn: its task is to be placed."""

    def choice_accepted(self) -> None:
        """Its task executor has the task."""

    def choice_failed(self, choice: "Choice", error: DeepFlowError, where: str = "") -> None:
        """Nothing more will come of its task, which `where` had."""

    def choice_sent(self) -> None:
        """Its end is on the way to the gateway."""


class Choice:
    """Owner of a task; `take` is the hottest function of this service.

    log.token_ids:  … passed on … | may be passed on … | waits for credit …
                                  _sent                _limit
    """

    __slots__ = (
        "_calls",
        "_details",
        "_detokenizer",
        "_is_offered",
        "_job",
        "_limit",
        "_matcher",
        "_num_resumed",
        "_returned",
        "_room",
        "_sent",
        "_ticket",
        "_window",
        "attempt",
        "incarnation",
        "index",
        "is_accepted",
        "is_done",
        "link",
        "log",
        "prompt",
        "story",
        "task_handle",
    )

    def __init__(
        self,
        job: ChoiceOwner,
        index: int,
        prompt: list[int],
        *,
        detokenizer: Detokenizer,
        stops: list[str],
        window: int,
        min_tokens: int = 0,
        details: TokenBytes | None = None,
        returned: ReturnedPrompt | None = None,
        calls: AnswerCalls | None = None,
    ) -> None:
        """`details` are given where the client asked for logprobs, `returned` for the prompt,
        `calls` where the answer may hold some.
        """
        self._job = job
        self.index = index
        self.prompt = prompt
        self.log = ChoiceLog()
        self.story = ChoiceStory()
        self._detokenizer = detokenizer
        self._matcher = new_stop_matcher(stops, min_tokens)
        self._calls = calls
        self._details: Details | None = None
        if details is not None:
            self.log.alternatives = Alternatives()
            self._details = Details(self.log.alternatives, details)
        self._returned = returned
        self._window = window or _UNLIMITED
        self._sent = self._num_resumed = 0
        self._limit = self._window
        # Until the job is admitted nothing is offered: it counts as offered already.
        self._is_offered = True
        self.is_accepted = False
        self.is_done = False  # its end was sent, or nobody waits for it any more
        self._room: WaitingRoom | None = None
        self._ticket: Ticket | None = None
        self.link: TaskExecutorLink | None = None
        self.task_handle = 0
        self.incarnation = 0
        self.attempt = 0

    @property
    def num_new_tokens(self) -> int:
        return len(self.log.token_ids) - self._num_resumed

    def resume(self, token_ids: list[int]) -> None:
        """The client holds these already: they set the state and are not sent again."""
        for index, token_id in enumerate(token_ids):
            self.take(index, token_id, 0.0)
        self._num_resumed = self._sent = len(token_ids)
        self._limit = self._sent + self._window
        if self._details is not None:
            self._details.skip_to(self._sent)
        if self._calls is not None:
            self._calls.drop()

    @property
    def is_waiting(self) -> bool:
        """For its turn."""
        return self._ticket is not None and self._ticket.is_waiting

    def ask(self, room: WaitingRoom, ticket: Ticket) -> None:
        """For a place; it keeps the ticket until its task is over, wherever that runs."""
        self._room, self._ticket = room, ticket
        room.ask(ticket)

    def called(self) -> None:
        if self._ticket is not None:
            self.story.waited_seconds = self._ticket.waited_seconds
        self._job.choice_called(self)

    def place(self, link: TaskExecutorLink, task: tasks_pb2.Task, tokens: int) -> None:
        """Give the task, which has `tokens` to compute, to a task executor.

        Raises Unavailable where its stream is gone.
        """
        if self._returned is not None:
            self._returned.reset()
        self.task_handle = link.submit(task, self, tokens)
        if self._room is not None and self._ticket is not None and not self.attempt:
            self._room.charge_input(self._ticket, tokens)
        self.link, self.incarnation = link, link.incarnation
        self.story.placed(link.id)

    def open(self) -> None:
        """The job was admitted: what came so far may leave."""
        self._is_offered = False
        self._offer_if_due()

    # ── what the link tells ──────────────────────────────────────────────────────────────────

    def accepted(self) -> None:
        if not self.is_accepted:
            self.is_accepted = True
            self._job.choice_accepted()

    def take(self, first_index: int, token_id: int, logprob: float) -> None:
        log = self.log
        count = len(log.token_ids)
        if first_index != count:
            self._fail_on_gap(first_index)
            return
        text = self._detokenizer.push(token_id)
        if self._matcher is not None:
            text = self._matcher.push(text)
        if self._calls is not None:
            text = self._calls.push(text, count)
        log.token_ids.append(token_id)
        log.texts.append(text)
        log.logprobs.append(logprob)
        if not self._is_offered and count < self._limit:
            self._is_offered = True
            self._job.outbox.offer(self)
        if self._matcher is not None and self._matcher.matched:
            self._stop()
        if self._calls is not None and self._calls.is_over:
            self._stop()  # once more does no harm

    def alternatives(self, index: int, token_ids: list[int], logprobs: list[float]) -> None:
        """Comes right before its token."""
        if self.log.alternatives is not None and index == len(self.log.token_ids):
            self.log.alternatives.add(index, token_ids, logprobs)

    def prompt_logprobs(self, told: tasks_pb2.PromptLogprobs) -> None:
        if self._returned is not None:
            try:
                self._returned.add(told)
            except Internal as error:
                self._give_up(error)

    def finished(self, end: tasks_pb2.TaskFinished) -> None:
        if end.reason == types.FINISH_REASON_ERROR:
            self.lost(from_proto(end.error))
        elif end.reason == types.FINISH_REASON_CANCELLED:
            # We hear nothing of tasks that we cancelled, so the task executor did.
            self.lost(Unavailable("the task executor cancelled the task"))
        elif self._returned is not None and not self._returned.is_complete:
            self.lost(Internal("the task ended before all logprobs of its prompt had come"))
        else:
            self.link = None
            self._leave_room()
            self.finish(end.reason, cached_tokens=end.usage.cached_tokens)

    def lost(self, error: DeepFlowError) -> None:
        where = self.link.id if self.link is not None else ""
        self.link = None
        self._job.choice_failed(self, error, where)

    # ── how it ends ──────────────────────────────────────────────────────────────────────────

    def finish(
        self,
        reason: types.FinishReason.ValueType,
        *,
        cached_tokens: int = 0,
        error: DeepFlowError | None = None,
    ) -> None:
        """The last word; sent behind the tokens that are still here."""
        if self.log.finish is not None:
            return
        tail, cut = self._tail()
        if cut and error is None:
            reason = types.FINISH_REASON_STOP
        if self._calls is not None:
            index = len(self.log.token_ids)
            tail = self._calls.push(tail, index) + self._calls.flush(index)
            reason = self._calls.reason(reason)
        self.log.finish = jobs_pb2.ChoiceFinished(
            handle=self._job.handle,
            choice_index=self.index,
            reason=reason,
            text_tail=tail,
            usage=types.Usage(
                prompt_tokens=len(self.prompt),
                completion_tokens=len(self.log.token_ids),
                cached_tokens=max(cached_tokens, self.story.cached_tokens),
            ),
            error=to_proto(error) if error is not None else None,
        )
        self.story.ended(self.log.finish)
        self._offer_if_due()

    def fail(self, error: DeepFlowError) -> None:
        """The work ended; what it produced is still delivered."""
        self.release()
        self.finish(types.FINISH_REASON_ERROR, error=error)

    def abandon(self, error: DeepFlowError) -> None:
        """End now: nobody reads the tokens that wait for credit."""
        self.release()
        if self.is_done:
            return
        self._sent = len(self.log.token_ids)
        self._returned = None
        self.log.finish = None  # an end that could not be sent is replaced
        is_cancel = isinstance(error, Cancelled)
        reason = types.FINISH_REASON_CANCELLED if is_cancel else types.FINISH_REASON_ERROR
        self.finish(reason, error=None if is_cancel else error)
        if self._calls is not None:
            self._calls.drop()

    def release(self) -> None:
        """Free the work on the task executor, if any is left there, and its place in the queue."""
        if self.link is not None:
            self.link.cancel(self.task_handle)
            self.link = None
        self._leave_room()

    def _leave_room(self) -> None:
        ticket, self._ticket = self._ticket, None
        if self._room is not None and ticket is not None:
            self._room.leave(ticket)

    # ── what the gateway gets ────────────────────────────────────────────────────────────────

    def credit(self, delivered_tokens: int) -> None:
        self._limit = max(self._limit, delivered_tokens + self._window)
        self._offer_if_due()

    def drain_into(self, columns: Columns) -> None:
        self._is_offered = False
        if self._returned is not None and not self._send_prompt(columns):
            return
        log, start = self.log, self._sent
        end = min(len(log.token_ids), self._limit)
        if self._details is not None and end > start:
            end = min(end, start + DETAILED_TOKENS_MAX)
            columns.add_details(self._details.take(len(columns.handles), log.token_ids, end))
        if end > start:
            if start == self._num_resumed:
                self.story.passed_on_first()
            self._sent = end
            columns.handles.append(self._job.handle)
            columns.choice_indexes.append(self.index)
            columns.first_indexes.append(start)
            columns.token_counts.append(end - start)
            columns.token_ids += log.token_ids[start:end]
            columns.texts += log.texts[start:end]
            columns.logprobs += log.logprobs[start:end]
            columns.incarnations.append(self.incarnation)
            if self._calls is not None:
                columns.tool_calls += self._calls.take(end)
        if log.finish is not None and self._sent == len(log.token_ids) and not self.is_done:
            self.is_done = True
            columns.finished.append(log.finish)
            if self._calls is not None:
                columns.tool_calls += self._calls.take(_UNLIMITED)
            self._job.choice_sent()
        elif self._details is not None:
            self._offer_if_due()

    @property
    def _came_to_nothing(self) -> bool:
        end = self.log.finish
        has_failed = end is not None and end.reason == types.FINISH_REASON_ERROR
        return has_failed or (end is not None and not self.num_new_tokens)

    def _send_prompt(self, columns: Columns) -> bool:
        """False where that failed: the choice has another end now."""
        returned, self._returned = self._returned, None
        if returned is None or (self._came_to_nothing and not returned.is_complete):
            return True
        try:
            columns.add_prompt(returned.to_proto(self._job.handle, self.index))
        except DeepFlowError as error:
            self.log.finish = None  # an end that does not hold is replaced
            self._give_up(error)
            return False
        return True

    def _offer_if_due(self) -> None:
        has_tokens = self._sent < min(len(self.log.token_ids), self._limit)
        is_ended = self.log.finish is not None and self._sent == len(self.log.token_ids)
        if not self._is_offered and (has_tokens or is_ended) and not self.is_done:
            self._is_offered = True
            self._job.outbox.offer(self)

    def _stop(self) -> None:
        self.release()
        self.finish(types.FINISH_REASON_STOP)

    def _tail(self) -> tuple[str, bool]:
        """The text still held back, and whether a stop string cuts it."""
        text = self._detokenizer.flush()
        if self._matcher is None:
            return text, False
        return self._matcher.finish(text), bool(self._matcher.matched)

    def _fail_on_gap(self, first_index: int) -> None:
        count = len(self.log.token_ids)
        if first_index < count:
            return  # repeated: we have it
        self._give_up(Internal(f"token {first_index} came where token {count} was due"))

    def _give_up(self, error: DeepFlowError) -> None:
        """What the task executor told cannot be used."""
        self.release()
        self._job.choice_failed(self, error)
