"""The tokenizer of one model folder."""

from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError
from services.job_executor.tokenizer.byte_level import ByteTable
from services.job_executor.tokenizer.chat_template import ChatTemplate, read_chat_template
from services.job_executor.tokenizer.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    WindowDetokenizer,
)

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
        self._silent = frozenset(
            token_id
            for token_id, token in inner.get_added_tokens_decoder().items()
            if token.special
        )
        is_byte_level = isinstance(inner.decoder, decoders.ByteLevel)
        self._table = ByteTable(vocabulary, self._silent) if is_byte_level else None

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

    def new_detokenizer(self) -> Detokenizer:
        if self._table is not None:
            return ByteLevelDetokenizer(self._table)
        return WindowDetokenizer(self._inner, self._silent)
