"""The packaged demo model means what it says: its corpus is sound, its folder small, and it
answers questions it was never trained on."""

import struct
from collections import defaultdict
from itertools import islice
from math import prod
from pathlib import Path

import msgspec
import pytest

from deepflow.demo import MODEL_DIR
from tools.demo_model.corpus import Corpus, held_out, read_held_out
from tools.demo_model.evaluate import Score, score_by_kind
from tools.demo_model.sums import held_out_sums, trained_sums
from tools.demo_model.topics import normal_form

FOLDER_BYTES_MAX = 12 * 2**20
STREAM_SAMPLE = 50_000


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    return score_by_kind(MODEL_DIR, read_held_out())


def test_held_out_file_is_what_the_corpus_holds_out() -> None:
    assert read_held_out() == held_out()
    assert len(held_out()) >= 200


def test_no_held_out_question_is_trained() -> None:
    corpus = Corpus()
    unseen = {normal_form(pair.question) for pair in read_held_out()}
    trained = {normal_form(pair.question) for pair in corpus.plain()}
    trained |= {normal_form(pair.question) for pair in islice(corpus.stream(1), STREAM_SAMPLE)}
    assert not unseen & trained


def test_held_out_sums_are_trained_in_no_wording() -> None:
    assert not set(held_out_sums()) & set(trained_sums())


def test_no_question_has_two_answers() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for pair in [*Corpus().plain(), *held_out()]:
        answers[normal_form(pair.question)].add(pair.answer)
    assert [question for question, given in answers.items() if len(given) > 1] == []


def test_at_least_fifty_topics() -> None:
    assert len(Corpus().topics) >= 50


def test_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= FOLDER_BYTES_MAX


def test_parameter_count() -> None:
    assert 1_000_000 <= _count_parameters(MODEL_DIR / "model.safetensors") <= 5_000_000


def test_begin_token_is_written_once() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|begin|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>"
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_digits_are_tokens_of_their_own() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert tokenizer.tokenize("12 + 34")[:2] == ["1", "2"]


@pytest.mark.parametrize("kind", ["topic", "sum"])
def test_held_out_questions_are_answered_word_for_word(scores: dict[str, Score], kind: str) -> None:
    score = scores[kind]
    assert score.exact >= 0.95, [(pair.question, said) for pair, said in score.misses]


def _count_parameters(weights: Path) -> int:
    """From the header alone: 8 bytes of length, then JSON."""
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = msgspec.json.decode(data[8 : 8 + length])
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
