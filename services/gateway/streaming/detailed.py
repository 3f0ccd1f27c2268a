"""The answers of clients that look at single tokens: their ids, their log probabilities."""

from collections.abc import Sequence
from typing import Any

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.events import EventFormat
from services.gateway.streaming.failure import unscored
from services.gateway.streaming.live import LiveAnswer
from services.gateway.streaming.logprobs import keeper_for
from services.gateway.streaming.scores import scores_of
from services.gateway.streaming.usage import UsageSum
from services.gateway.streaming.wanted import Wanted
from services.gateway.streaming.whole import WholeAnswer


class DetailedLiveAnswer(LiveAnswer):
    """Every event carries what is known of the tokens that have come since the one before."""

    __slots__ = ("_keepers",)

    def __init__(
        self,
        form: EventFormat,
        usage: UsageSum,
        wanted: Wanted,
        *,
        include_usage: bool,
        choices: int,
    ) -> None:
        super().__init__(form, usage, wanted, include_usage=include_usage)
        self._keepers = [keeper_for(wanted) for _ in range(choices)]

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        self._keepers[choice].expect(scores_of(details, logprobs))

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        if self._wanted.echo:
            self._keepers[prompt.choice_index].prompt(prompt)
        super().prompt(prompt)

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        keeper, with_ids = self._keepers[choice], self._wanted.token_ids
        if not keeper.knows(len(token_ids)):
            self.failure = self.failure or unscored()
            return
        for text, token_id in zip(texts, token_ids, strict=True):
            keeper.token(text)
            if with_ids:
                event = self._format.detailed(choice, text, keeper.take(), token_ids=[token_id])
                self._events.append(event)
            elif text:
                self._events.append(self._format.detailed(choice, text, keeper.take()))

    def _logprobs(self, choice: int) -> dict[str, Any] | None:
        return self._keepers[choice].take()

    def _add_rest(self, choice: int, text: str) -> None:
        # Tokens that showed no text, like the one that ends the answer, still count.
        logprobs = self._keepers[choice].take()
        if text or logprobs is not None:
            self._events.append(self._format.detailed(choice, text, logprobs))


class DetailedWholeAnswer(WholeAnswer):
    def __init__(self, choices: int, usage: UsageSum, wanted: Wanted) -> None:
        super().__init__(choices, usage, wanted)
        self._keepers = [keeper_for(wanted) for _ in range(choices)]
        self._token_ids: list[list[int]] = [[] for _ in range(choices)]

    def details(self, choice: int, details: jobs.TokenDetails, logprobs: Sequence[float]) -> None:
        self._keepers[choice].expect(scores_of(details, logprobs))

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        super().prompt(prompt)
        if self._wanted.echo:
            self._keepers[prompt.choice_index].prompt(prompt)

    def tokens(self, choice: int, texts: Sequence[str], token_ids: Sequence[int]) -> None:
        super().tokens(choice, texts, token_ids)
        keeper = self._keepers[choice]
        if not keeper.knows(len(token_ids)):
            self.failure = self.failure or unscored()
            return
        self._token_ids[choice] += token_ids
        for text in texts:
            keeper.token(text)

    def _choice(self, index: int) -> dict[str, Any]:
        choice = super()._choice(index)
        choice["logprobs"] = self._keepers[index].take()
        if self._wanted.token_ids:
            choice["token_ids"] = self._token_ids[index]
        return choice
