"""The matcher of every row that has a grammar: masks before a draw, one step after it."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deepflow.core.mixing import I64
from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.mask_filler import MaskFiller
from services.task_executor.flowserve.grammar.sources import GrammarError
from services.task_executor.flowserve.grammar.vocabulary import raise_error_of

if TYPE_CHECKING:
    from llguidance import LLMatcher

TOO_SLOW = "its masks take too long to compute"
NO_TOKEN = "no token of the model fits it"
_WORD_BITS = 32


class _Follower:
    __slots__ = ("fault", "matcher", "num_slow")

    def __init__(self, matcher: "LLMatcher") -> None:
        self.matcher = matcher
        self.num_slow = 0
        self.fault = ""  # once set the row fails with its next token

    def note_slow(self) -> None:
        self.num_slow += 1
        if self.num_slow >= limits.SLOW_MASKS_MAX:
            self.fault = TOO_SLOW


class RowMatchers:
    """Lent to an executor; see executor/matching.py for what it promises."""

    def __init__(self, grammars: Grammars, vocab_size: int) -> None:
        self._grammars = grammars
        self._by_row: dict[int, _Follower] = {}
        self._everything = _bits_below(vocab_size)
        self._filler: MaskFiller | None = None

    def __len__(self) -> int:
        return len(self._by_row)

    def admit(self, row: int, grammar: Grammar, answer_token_ids: list[int]) -> None:
        matcher = self._grammars.matcher(grammar)
        if answer_token_ids:
            matcher.consume_tokens(answer_token_ids)  # a token that does not fit shows as an error
        self._by_row[row] = _Follower(matcher)

    def release(self, row: int) -> None:
        self._by_row.pop(row, None)

    def masks(self, rows: I64) -> tuple[I64, npt.NDArray[np.int32]] | None:
        """The bits are good until the next call."""
        if not self._by_row:
            return None
        entries = [index for index, row in enumerate(rows.tolist()) if row in self._by_row]
        if not entries:
            return None
        followers = [self._by_row[int(rows[entry])] for entry in entries]
        return np.array(entries, dtype=np.int64), self._masks_of(followers)

    def accept(self, rows: I64, token_ids: I64) -> tuple[list[int], dict[int, str]]:
        completed: list[int] = []
        failures: dict[int, str] = {}
        if not self._by_row:
            return completed, failures
        for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True):
            follower = self._by_row.get(row)
            if follower is None:
                continue
            try:
                if _take(follower, token):
                    completed.append(row)
            except GrammarError as error:
                failures[row] = f"the grammar could not be followed: {error}"
        return completed, failures

    def _masks_of(self, followers: list[_Follower]) -> npt.NDArray[np.int32]:
        if self._filler is None:
            self._filler = MaskFiller(self._grammars.mask_words)
        raw, slow = self._filler.fill([follower.matcher for follower in followers])
        for index in slow:
            followers[index].note_slow()
        bits = self._cut(raw)
        for line, follower in zip(bits, followers, strict=True):
            if not line.any():
                follower.fault = follower.fault or NO_TOKEN
            if follower.matcher.is_error() or follower.fault:
                line[:] = self._everything  # something must be drawn; `accept` says what is wrong
        return bits

    def _cut(self, raw: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The tokenizer may know more tokens than the model, or fewer."""
        words = len(self._everything)
        if raw.shape[1] != words:
            missing = max(0, words - raw.shape[1])
            raw = np.ascontiguousarray(np.pad(raw[:, :words], ((0, 0), (0, missing))))
        raw &= self._everything
        return raw


def _take(follower: _Follower, token: int) -> bool:
    """Whether the token completes the answer. Raises GrammarError."""
    if follower.fault:
        raise GrammarError(follower.fault)
    raise_error_of(follower.matcher)
    follower.matcher.consume_token(token)
    raise_error_of(follower.matcher)
    return follower.matcher.is_stopped()


def _bits_below(count: int) -> npt.NDArray[np.int32]:
    """A mask that allows the tokens 0 .. count - 1."""
    is_set = np.arange(-(-count // _WORD_BITS) * _WORD_BITS) < count
    return np.packbits(is_set, bitorder="little").view(np.int32)
