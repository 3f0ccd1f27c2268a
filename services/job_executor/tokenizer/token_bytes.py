"""The bytes that each token stands for on its own, special ones included."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from services.job_executor.tokenizer.byte_level import token_bytes

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Stands before a token, so that what a decoder does to the start of a text happens to it alone.
_ANCHOR = "a"


class TokenBytes(dict[int, bytes]):
    """By token id; filled as ids are asked for, so never larger than the vocabulary."""

    def __init__(
        self,
        id_to_token: Callable[[int], str | None],
        verbatim: Mapping[int, str],
        spell: Callable[[str], bytes],
    ) -> None:
        """`verbatim` are the special tokens, which stand for their own text."""
        super().__init__()
        self._id_to_token = id_to_token
        self._verbatim = verbatim
        self._spell = spell

    def __missing__(self, token_id: int) -> bytes:
        content = self._verbatim.get(token_id)
        if content is not None:
            found = content.encode()
        else:
            token = self._id_to_token(token_id)
            if token is None:
                return b""  # a row of the model that no token has
            found = self._spell(token)
        self[token_id] = found
        return found


def spelling_of(decoder: Any | None, *, is_byte_level: bool) -> Callable[[str], bytes]:
    """How a vocabulary spells bytes, told by what its decoder makes of its tokens."""
    if is_byte_level:
        return token_bytes

    def decode(tokens: list[str]) -> str:
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    has_byte_tokens = decode([_ANCHOR, "<0x41>"]) == _ANCHOR + "A"

    def spell(token: str) -> bytes:
        if has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return decode([_ANCHOR, token]).removeprefix(_ANCHOR).encode()

    return spell
