"""Token ids to text, one at a time, never half a character."""

import codecs
from typing import Any, Protocol

from services.job_executor.tokenizer.byte_level import ByteTable

# No character has more bytes, so text that ends in a replacement for longer than this stays so.
CHARACTER_TOKENS_MAX = 4
_REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """The state of one choice. All pieces and the flush together are the decoded answer."""

    def push(self, token_id: int) -> str:
        """The text that is sure after this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left at the end; an incomplete character becomes U+FFFD."""


class ByteLevelDetokenizer:
    """A table lookup a token, but where a character spans several."""

    __slots__ = ("_decoder", "_is_midway", "_table", "_texts")

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._texts = table.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_midway = False

    def push(self, token_id: int) -> str:
        if not self._is_midway:
            try:
                text = self._texts[token_id]
            except IndexError:
                return ""
            if text is not None:
                return text
        return self._push_bytes(self._table.bytes_of(token_id))

    def flush(self) -> str:
        self._is_midway = False
        return self._decoder.decode(b"", final=True)

    def _push_bytes(self, content: bytes) -> str:
        text = self._decoder.decode(content)
        self._is_midway = bool(self._decoder.getstate()[0])
        return text


class WindowDetokenizer:
    """For any other tokenizer: decode a short window with and without what is new.

    ids:  … already given out … | window start … | given out up to here … | new …
                                 _start            _done
    The window begins at a token that gave text, so that what a decoder does to the first token of
    a text (dropping its space) happens to both decodings alike.
    """

    __slots__ = ("_done", "_hides_special", "_ids", "_prefix", "_silent", "_tokenizer")

    def __init__(
        self, tokenizer: Any, silent: frozenset[int], *, hides_special: bool = True
    ) -> None:
        """`silent` are the ids that stand for nothing; they never enter the window."""
        self._tokenizer = tokenizer
        self._silent = silent
        self._hides_special = hides_special
        self._ids: list[int] = []
        self._done = 0
        self._prefix = ""

    def push(self, token_id: int) -> str:
        if token_id in self._silent:
            return ""
        self._ids.append(token_id)
        text = self._decode()
        is_incomplete = text.endswith(_REPLACEMENT) and self._num_new <= CHARACTER_TOKENS_MAX
        if is_incomplete or len(text) <= len(self._prefix):
            return ""
        return self._give_out(text)

    def flush(self) -> str:
        return self._give_out(self._decode())

    @property
    def _num_new(self) -> int:
        return len(self._ids) - self._done

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=self._hides_special))

    def _give_out(self, text: str) -> str:
        piece = text[len(self._prefix) :]
        self._ids = self._ids[self._done :]
        self._done = len(self._ids)
        self._prefix = self._decode()
        return piece


class EndingDetokenizer:
    """Another one, but that the tokens which end an answer are no part of its text."""

    __slots__ = ("_ends", "_inner")

    def __init__(self, inner: Detokenizer, ends: frozenset[int]) -> None:
        self._inner = inner
        self._ends = ends

    def push(self, token_id: int) -> str:
        return "" if token_id in self._ends else self._inner.push(token_id)

    def flush(self) -> str:
        return self._inner.flush()
