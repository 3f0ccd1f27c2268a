"""The bytes of the tokens of a text are the bytes of the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from services.job_executor.tokenizer.model_tokenizer import ModelTokenizer
from tests.unit.job_executor.model_folders import byte_level_tokenizer, metaspace_tokenizer

BYTE_LEVEL = ModelTokenizer(byte_level_tokenizer(), None)
METASPACE = ModelTokenizer(metaspace_tokenizer(), None)


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2 spells bytes."""
    vocabulary = {"▁a": 0, "b": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return inner


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_byte_level_tokens_spell_any_text(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False, tokens_max=1000)
    assert b"".join(BYTE_LEVEL.token_bytes[i] for i in ids) == text.encode()


@pytest.mark.parametrize("text", ["What is a task executor?", "numbers 1 2 3", "Größe, Füße"])
def test_metaspace_tokens_begin_with_a_space(text: str) -> None:
    ids = METASPACE.encode(text, add_special_tokens=False, tokens_max=1000)
    assert b"".join(METASPACE.token_bytes[i] for i in ids) == b" " + text.encode()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_special_tokens_are_their_text_and_unknown_ids_nothing(tokenizer: ModelTokenizer) -> None:
    assert [tokenizer.token_bytes[i] for i in range(3)] == [b"<bos>", b"<eos>", b"<turn>"]
    size = len(tokenizer.token_bytes)
    assert tokenizer.token_bytes[4_000_000_000] == b""
    assert len(tokenizer.token_bytes) == size


def test_a_byte_token_is_one_byte_where_the_decoder_says_so() -> None:
    tokenizer = ModelTokenizer(byte_fallback_tokenizer(), None)
    assert [tokenizer.token_bytes[i] for i in (0, 1, 2 + 0xF0)] == [b" a", b"b", b"\xf0"]
    plain = Tokenizer(models.WordLevel(vocab={"<0x41>": 0, "word": 1}, unk_token="word"))
    assert ModelTokenizer(plain, None).token_bytes[0] == b" <0x41>"


def test_tokens_are_spelled_as_the_vocabulary_does() -> None:
    ids = BYTE_LEVEL.encode("is a", add_special_tokens=True, tokens_max=10)
    assert BYTE_LEVEL.spell([*ids, 10_000]) == ["<bos>", "is", "Ġa", ""]
