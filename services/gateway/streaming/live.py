"""An answer that is passed on while it grows: tokens in, server-sent events out."""

from collections.abc import Callable, Sequence
from typing import Any

from deepflow.errors import DeepFlowError
from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming import calls
from services.gateway.streaming.events import DONE, EventFormat, encode, error_event
from services.gateway.streaming.failure import failure_of
from services.gateway.streaming.usage import UsageSum, finish_reason
from services.gateway.streaming.wanted import Wanted


class LiveAnswer:
    """Holds the events that are not sent yet; the job's token window bounds them.

    `flush` hands them to `push`, which the handler lends while nothing of its own is on its way.
    What clients may ask for token by token is in `detailed.py`; this is the way of all others.
    """

    __slots__ = (
        "_events",
        "_format",
        "_prefixes",
        "_wanted",
        "failure",
        "include_usage",
        "push",
        "usage",
    )

    def __init__(
        self, form: EventFormat, usage: UsageSum, wanted: Wanted, *, include_usage: bool
    ) -> None:
        self.usage = usage
        self.failure: DeepFlowError | None = None
        self.include_usage = include_usage
        self.push: Callable[[bytes], bool] | None = None
        self._format = form
        self._prefixes = form.prefixes
        self._wanted = wanted
        self._events: list[bytes] = []

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        prefix, end, events = self._prefixes[choice], self._format.token_end, self._events
        for text in texts:
            # Half of a character, or of what may become a stop string: nothing to show yet.
            if text:
                events.append(prefix + encode(text) + end)

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        """Nobody asked."""

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        wanted, choice, more = self._wanted, prompt.choice_index, {}
        if wanted.token_ids:
            more["prompt_token_ids"] = list(prompt.token_ids)
        if wanted.is_chat:
            if more and choice == 0:
                self._events.append(self._format.chat_prompt(more["prompt_token_ids"]))
            return
        text, logprobs = (prompt.text, self._logprobs(choice)) if wanted.echo else ("", None)
        if text or more:
            self._events.append(self._format.detailed(choice, text, logprobs, **more))

    def tool_call(self, delta: jobs.ToolCallDelta) -> None:
        choice = delta.choice_index
        piece = calls.piece(delta)
        self._events.append(self._format.tool_call(choice, piece, self._logprobs(choice)))

    def finished(self, choice: jobs.ChoiceFinished) -> None:
        index = choice.choice_index
        self.usage.add(index, choice.usage)
        reason = finish_reason(choice)
        if reason is None:
            self.failure = self.failure or failure_of(choice)
            return
        self._add_rest(index, choice.text_tail)
        self._events.append(self._format.finish(index, reason))

    def flush(self) -> bool:
        events, push = self._events, self.push
        if not events:
            return self.failure is None
        if push is None or not push(events[0] if len(events) == 1 else b"".join(events)):
            return False
        events.clear()
        return True

    def roles(self, choices: int) -> bytes:
        """How every choice of a chat begins."""
        return b"".join(self._format.role(index) for index in range(choices))

    def take(self) -> bytes:
        """Everything that can be sent now, for the handler; it lends `push` again afterwards.

        One writer at a time, or a push would overtake what the handler is sending.
        """
        self.push = None
        body = b"".join(self._events)
        self._events.clear()
        return body

    def ending(self, failure: DeepFlowError | None) -> bytes:
        """The last bytes of the stream, with what was not sent yet."""
        body = self.take()
        failure = failure or self.failure
        if failure is not None:
            return body + error_event(failure) + DONE
        if self.include_usage:
            body += self._format.usage(self.usage.document())
        return body + DONE

    def _logprobs(self, choice: int) -> dict[str, Any] | None:
        """Of the tokens that have come since the last piece."""
        return None

    def _add_rest(self, choice: int, text: str) -> None:
        """What is left to say at the end of a choice."""
        if text:
            self._events.append(self._format.token(choice, text))
