"""Log probabilities as each route words them. Pure; one keeper belongs to one choice.

A keeper is told the scores of tokens, then the tokens themselves with the text that each of them
shows. What it has words for is taken with the next piece of the answer.
"""

from collections import deque
from typing import Any, Protocol

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.streaming.scores import Score, prompt_scores
from services.gateway.streaming.wanted import Wanted

# JSON has no infinity; this is what stands for an impossible token elsewhere as well.
LOGPROB_MIN = -9999.0
# The bits of a byte that tell whether a character goes on with it.
_GOES_ON_MASK, _GOES_ON = 0xC0, 0x80


class Keeper(Protocol):
    def expect(self, scores: list[Score]) -> None:
        """These tokens come next."""

    def knows(self, count: int) -> bool:
        """Whether the scores of the next tokens are there."""

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        """The answer begins with its prompt."""

    def token(self, text: str) -> None:
        """The next token came and shows this text; none while a character is incomplete."""

    def take(self) -> dict[str, Any] | None:
        """What was not passed on yet."""


def keeper_for(wanted: Wanted) -> Keeper:
    if wanted.logprobs is None:
        return Nothing()
    return ChatLogprobs() if wanted.is_chat else TextLogprobs(wanted.logprobs)


class Nothing:
    """Of a client that did not ask."""

    def expect(self, scores: list[Score]) -> None:
        pass

    def knows(self, count: int) -> bool:
        return True

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        pass

    def token(self, text: str) -> None:
        pass

    def take(self) -> dict[str, Any] | None:
        return None


class ChatLogprobs:
    """choices[].logprobs of a chat: one object a token."""

    def __init__(self) -> None:
        self._expected: deque[Score] = deque()
        self._content: list[dict[str, Any]] = []

    def expect(self, scores: list[Score]) -> None:
        self._expected += scores

    def knows(self, count: int) -> bool:
        return len(self._expected) >= count

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        """A chat is never repeated."""

    def token(self, text: str) -> None:
        score = self._expected.popleft()
        entry = _chat_entry(score.token, score.logprob)
        entry["top_logprobs"] = [_chat_entry(a.token, a.logprob) for a in score.alternatives]
        self._content.append(entry)

    def take(self) -> dict[str, Any] | None:
        if not self._content:
            return None
        content, self._content = self._content, []
        return {"content": content, "refusal": None}


class TextLogprobs:
    """choices[].logprobs of a completion: parallel lists, and where in the text a token begins."""

    def __init__(self, alternatives: int) -> None:
        self._alternatives = alternatives
        self._expected: deque[Score] = deque()
        self._offset = 0
        self._clear()

    def expect(self, scores: list[Score]) -> None:
        self._expected += scores

    def knows(self, count: int) -> bool:
        return len(self._expected) >= count

    def prompt(self, prompt: jobs.ChoicePrompt) -> None:
        offsets = offsets_in(prompt.text, list(prompt.token_bytes))
        # Nothing comes before the first token: nothing makes it likely or unlikely.
        self._add(prompt.token_bytes[0], None, None, 0)
        for score, offset in zip(prompt_scores(prompt), offsets[1:], strict=True):
            self._add(score.token, score.logprob, self._tops(score), offset)
        self._offset = len(prompt.text)

    def token(self, text: str) -> None:
        score = self._expected.popleft()
        self._add(score.token, score.logprob, self._tops(score), self._offset)
        self._offset += len(text)

    def take(self) -> dict[str, Any] | None:
        if not self._tokens:
            return None
        taken = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top_logprobs,
            "text_offset": self._offsets,
        }
        self._clear()
        return taken

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top_logprobs: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def _add(
        self, token: bytes, logprob: float | None, tops: dict[str, float] | None, offset: int
    ) -> None:
        self._tokens.append(_text_word(token))
        self._logprobs.append(None if logprob is None else _finite(logprob))
        self._top_logprobs.append(tops)
        self._offsets.append(offset)

    def _tops(self, score: Score) -> dict[str, float]:
        """The alternatives and the token itself, likeliest first where two are spelled alike."""
        tops: dict[str, float] = {}
        for alternative in score.alternatives[: self._alternatives]:
            tops.setdefault(_text_word(alternative.token), _finite(alternative.logprob))
        tops.setdefault(_text_word(score.token), _finite(score.logprob))
        return tops


def prompt_document(prompt: jobs.ChoicePrompt, alternatives: int) -> list[Any]:
    """prompt_logprobs of either route: null for the first token, then an object by token id."""
    document: list[Any] = [None]
    scores = prompt_scores(prompt)
    for token_id, rank, score in zip(prompt.token_ids[1:], prompt.ranks, scores, strict=True):
        entry = {str(token_id): _ranked(score.token, score.logprob, rank)}
        for place, other in enumerate(score.alternatives[:alternatives], 1):
            entry.setdefault(str(other.token_id), _ranked(other.token, other.logprob, place))
        document.append(entry)
    return document


def offsets_in(text: str, tokens: list[bytes]) -> list[int]:
    """Where in the text each token begins.

    A token that shows nothing (a mark at the beginning, or the space that some tokenizers put
    before the first word) begins where the next one does.
    """
    encoded, at, characters = text.encode(), 0, 0
    offsets = []
    for token in tokens:
        offsets.append(characters)
        shown = token if encoded.startswith(token, at) else token.lstrip(b" ")
        if shown and encoded.startswith(shown, at):
            at += len(shown)
            characters += sum(byte & _GOES_ON_MASK != _GOES_ON for byte in shown)
    return offsets


def _chat_entry(token: bytes, logprob: float) -> dict[str, Any]:
    word = token.decode("utf-8", "replace")
    return {"token": word, "logprob": _finite(logprob), "bytes": list(token)}


def _text_word(token: bytes) -> str:
    """A token that is no text by itself is spelled by its bytes, so that no two look alike."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _ranked(token: bytes, logprob: float, rank: int) -> dict[str, Any]:
    word = token.decode("utf-8", "replace")
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": word}


def _finite(logprob: float) -> float:
    return max(logprob, LOGPROB_MIN)
