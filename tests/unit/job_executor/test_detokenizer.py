"""Pieces put together are the decoded answer, whatever the ids are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from services.job_executor.tokenizer.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from services.job_executor.tokenizer.model_tokenizer import ModelTokenizer
from tests.unit.job_executor.model_folders import byte_level_tokenizer, metaspace_tokenizer

BYTE_LEVEL = byte_level_tokenizer()
METASPACE = metaspace_tokenizer()
TEXTS = ["emoji 😀👩‍👩‍👧‍👦!", "日本語のテキスト", "Größe naïve", " leading", "a  b", "🇩🇪🎉"]


def pieces_of(inner: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = ModelTokenizer(inner, None).new_detokenizer()
    return [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40))
def test_byte_level_pieces_are_the_decoded_text(ids: list[int]) -> None:
    expected = BYTE_LEVEL.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(BYTE_LEVEL, ids)) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, METASPACE.get_vocab_size() - 1), max_size=40))
def test_metaspace_pieces_are_the_decoded_text(ids: list[int]) -> None:
    expected = METASPACE.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(METASPACE, ids)) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40))
@pytest.mark.parametrize("inner", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_shown_special_tokens_are_part_of_the_decoded_text(
    inner: Tokenizer, ids: list[int]
) -> None:
    tokenizer = ModelTokenizer(inner, None)
    detokenizer = tokenizer.new_detokenizer(shows_special=True)
    text = "".join([detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()])
    assert text == inner.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


@pytest.mark.parametrize("inner", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_a_token_that_ends_the_answer_has_no_text(inner: Tokenizer) -> None:
    tokenizer = ModelTokenizer(inner, None)
    word = inner.encode("task", add_special_tokens=False).ids
    (end,) = inner.encode("<eos>", add_special_tokens=False).ids
    for shows_special in (True, False):
        detokenizer = tokenizer.new_detokenizer(
            shows_special=shows_special, ends=frozenset((end, word[-1]))
        )
        text = "".join(detokenizer.push(token_id) for token_id in [end, *word, end])
        assert text + detokenizer.flush() == inner.decode(word[:-1])


def test_a_hidden_end_costs_nothing() -> None:
    detokenizer = ModelTokenizer(BYTE_LEVEL, None).new_detokenizer(ends=frozenset((1,)))
    assert isinstance(detokenizer, ByteLevelDetokenizer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("inner", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_text_survives(inner: Tokenizer, text: str) -> None:
    ids = inner.encode(text).ids
    assert "".join(pieces_of(inner, ids)) == inner.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(BYTE_LEVEL, ids)
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(ids) + 1


def test_an_answer_that_ends_within_a_character_says_so() -> None:
    ids = BYTE_LEVEL.encode("🦖", add_special_tokens=False).ids[:-1]
    assert pieces_of(BYTE_LEVEL, ids) == [""] * len(ids) + ["\ufffd"]


@pytest.mark.parametrize("inner", [BYTE_LEVEL, METASPACE], ids=["byte-level", "metaspace"])
def test_ids_beyond_the_vocabulary_are_silent(inner: Tokenizer) -> None:
    ids = inner.encode("a b", add_special_tokens=False).ids
    beyond = inner.get_vocab_size() + 1000
    assert "".join(pieces_of(inner, [beyond, *ids, beyond])) == inner.decode(ids)


def test_the_fast_path_is_taken_where_it_is_right() -> None:
    assert isinstance(ModelTokenizer(BYTE_LEVEL, None).new_detokenizer(), ByteLevelDetokenizer)
    assert isinstance(ModelTokenizer(METASPACE, None).new_detokenizer(), WindowDetokenizer)


def test_bytes_of_one_character_are_held_back_with_byte_fallback() -> None:
    vocabulary = {"▁a": 0, "b": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    ids = [0, *(2 + byte for byte in "😀".encode()), 1]
    assert pieces_of(inner, ids) == ["a", "", "", "", "😀", "b", ""]
