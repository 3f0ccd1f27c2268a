"""What each token of a byte-level BPE vocabulary (GPT-2, Llama 3, Qwen) stands for."""

from collections.abc import Mapping


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_ALPHABET = byte_alphabet()


def token_bytes(token: str) -> bytes:
    """A token with a character outside the alphabet was added verbatim."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


class ByteTable:
    """By token id: its text where its bytes are whole characters, its bytes everywhere."""

    __slots__ = ("parts", "texts")

    def __init__(self, vocabulary: Mapping[str, int], silent: frozenset[int]) -> None:
        """`silent` are the ids (special tokens) that stand for nothing in an answer."""
        size = max(vocabulary.values(), default=-1) + 1
        self.texts: list[str | None] = [""] * size
        self.parts: dict[int, bytes] = {}  # only of tokens that cut a character
        for token, token_id in vocabulary.items():
            if token_id not in silent:
                self._add(token_id, token_bytes(token))

    def _add(self, token_id: int, content: bytes) -> None:
        try:
            self.texts[token_id] = content.decode()
        except UnicodeDecodeError:
            self.texts[token_id] = None
            self.parts[token_id] = content

    def showing(self, texts: Mapping[int, str]) -> "ByteTable":
        """The same table, but that these tokens stand for these texts."""
        table = ByteTable({}, frozenset())
        table.texts, table.parts = list(self.texts), self.parts
        for token_id, text in texts.items():
            table.texts[token_id] = text
        return table

    def bytes_of(self, token_id: int) -> bytes:
        if token_id >= len(self.texts):
            return b""
        text = self.texts[token_id]
        return self.parts[token_id] if text is None else text.encode()
