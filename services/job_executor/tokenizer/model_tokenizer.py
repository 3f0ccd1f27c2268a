"""The tokenizer of one model folder."""

from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError
from services.job_executor.tokenizer.byte_level import ByteTable
from services.job_executor.tokenizer.chat_template import ChatTemplate, read_chat_template
from services.job_executor.tokenizer.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    EndingDetokenizer,
    WindowDetokenizer,
)
from services.job_executor.tokenizer.token_bytes import TokenBytes, spelling_of

TOKENIZER_FILE = "tokenizer.json"
# Most tokens are shorter; a text longer than its limit times this is probed before it is encoded.
CHARACTERS_PER_TOKEN = 8
PROBE_MARGIN_CHARACTERS = 4096
PROBE_MARGIN_TOKENS = 64


class PromptTooLong(Exception):
    """A beginning of the text alone is over the limit; the rest was not looked at."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"at least {num_tokens} tokens")
        self.num_tokens = num_tokens


class ModelTokenizer:
    """Immutable once loaded; `encode` may be called by any thread."""

    def __init__(self, inner: Any, template: ChatTemplate | None) -> None:
        from tokenizers import decoders

        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.template = template
        vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        added = inner.get_added_tokens_decoder()
        special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._silent = frozenset(special)
        is_byte_level = isinstance(inner.decoder, decoders.ByteLevel)
        self._table = ByteTable(vocabulary, self._silent) if is_byte_level else None
        self._table_with_special = self._table.showing(special) if self._table else None
        # What each token stands for on its own; an id without a token stands for nothing.
        self.token_bytes = TokenBytes(
            inner.id_to_token, special, spelling_of(inner.decoder, is_byte_level=is_byte_level)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelTokenizer":
        """Takes up to a second for a large vocabulary. Raises ModelFolderError."""
        from tokenizers import Tokenizer  # late: 60 ms that readiness does not wait for

        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise ModelFolderError(f"{path}: no such file")
        try:
            inner = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing finer
            raise ModelFolderError(f"{path}: no tokenizer can be built from it: {error}") from error
        return cls(inner, read_chat_template(folder))

    def encode(self, text: str, *, add_special_tokens: bool, tokens_max: int) -> list[int]:
        """Work is bounded by the limit, not by the text: raises PromptTooLong early.

        A text may yield a little more than `tokens_max`: the caller tells how much.
        """
        probe = CHARACTERS_PER_TOKEN * tokens_max + PROBE_MARGIN_CHARACTERS
        if len(text) > probe:
            # Where a text is cut changes the last few tokens before the cut: hence the margin.
            num_tokens = len(self._encode(text[:probe], add_special_tokens)) - PROBE_MARGIN_TOKENS
            if num_tokens > tokens_max:
                raise PromptTooLong(num_tokens)
        return self._encode(text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of a whole sequence, special tokens included."""
        return str(self._inner.decode(token_ids, skip_special_tokens=False))

    def spell(self, token_ids: list[int]) -> list[str]:
        """The tokens as the vocabulary writes them; empty where it has none."""
        return [self._inner.id_to_token(token_id) or "" for token_id in token_ids]

    def id_of(self, token: str) -> int | None:
        """The token that is spelled like this in the vocabulary, where there is one."""
        token_id: int | None = self._inner.token_to_id(token)
        return token_id

    def new_detokenizer(
        self, *, shows_special: bool = False, ends: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """`ends` are tokens that end the answer; they are no part of its text."""
        detokenizer = self._new_detokenizer(shows_special)
        shown_ends = ends if shows_special else ends - self._silent
        return EndingDetokenizer(detokenizer, shown_ends) if shown_ends else detokenizer

    def _new_detokenizer(self, shows_special: bool) -> Detokenizer:
        table = self._table_with_special if shows_special else self._table
        if table is not None:
            return ByteLevelDetokenizer(table)
        if shows_special:
            return WindowDetokenizer(self._inner, frozenset(), hides_special=False)
        return WindowDetokenizer(self._inner, self._silent)
