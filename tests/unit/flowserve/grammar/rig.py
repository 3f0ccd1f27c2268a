"""Vocabularies of two kinds, and answers drawn by the real sampler from random logits."""

import atexit
import contextlib
import functools
import json
import shutil
import string
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hypothesis import reject
from tokenizers import Tokenizer

from deepflow.core.sampling import Grammar
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.grammar.grammars import Grammars
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.grammar.vocabulary import VocabularyFacts
from services.task_executor.flowserve.sampling.adjustments import TokenMasks
from services.task_executor.flowserve.sampling.drawing import Drawing, Limits
from services.task_executor.flowserve.sampling.sampler import SamplingColumns, sample
from tests.unit.flowserve.sampling_rows import settled

ANSWER_TOKENS_MAX = 300


@dataclass(frozen=True)
class Language:
    """A vocabulary and what is needed to draw from it."""

    folder: Path
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    @property
    def facts(self) -> VocabularyFacts:
        return VocabularyFacts(str(self.folder), self.vocab_size, self.eos_token_ids)

    @functools.cached_property
    def tokenizer(self) -> Any:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Never asked to prepare anything, so no worker runs."""
        grammars = Grammars(self.facts)
        grammars.read_vocabulary()
        return grammars

    @functools.cached_property
    def closers(self) -> list[int]:
        """Tokens that end something, so that an answer comes to its end."""
        size = min(self.vocab_size, self.tokenizer.get_vocab_size())
        return [t for t in range(size) if (self.tokenizer.id_to_token(t) or "x")[0] in '"]}']

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        ids = [token for token in token_ids if token not in self.eos_token_ids]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


def demo() -> Language:
    """Byte-level, and the model has as many tokens as the tokenizer."""
    return _DEMO


def padded() -> Language:
    """The model has more tokens than its tokenizer, and two that end an answer."""
    return _PADDED


@functools.cache
def byte_fallback() -> Language:
    """Pieces with a mark for blanks, and a token for every byte that no piece holds."""
    folder = Path(tempfile.mkdtemp(prefix="deepflow-test-"))
    atexit.register(shutil.rmtree, folder)  # kept as long as what was read from it
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces += ["▁a", '":', "tr", "ue", "true"]
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i, name in enumerate(pieces[:3])
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["▁", "a"], ['"', ":"], ["t", "r"], ["u", "e"], ["tr", "ue"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return Language(folder, len(pieces), (2,))


def draw_answer(language: Language, grammar: Grammar, seed: int, row: int = 0) -> list[int]:
    """Tokens until the grammar is complete or an EOS is drawn; for hypothesis only."""
    matchers = RowMatchers(language.grammars, language.vocab_size)
    matchers.admit(row, grammar, [])
    rows = np.array([row])
    answer: list[int] = []
    for index in range(ANSWER_TOKENS_MAX):
        token = draw_token(language, matchers, rows, [random_logits(language, seed, index)])[0]
        answer.append(token)
        completed, failures = matchers.accept(rows, np.array([token]))
        assert not failures
        if completed or token in language.eos_token_ids:
            return answer
    reject()  # these logits want no end; another example does


def random_logits(language: Language, seed: int, index: int) -> torch.Tensor:
    logits = np.random.default_rng((seed, index)).normal(size=language.vocab_size) * 3
    logits[language.closers] += index * 0.2
    logits[list(language.eos_token_ids)] += index * 0.2
    return torch.from_numpy(logits.astype(np.float32))


def draw_token(
    language: Language, matchers: RowMatchers, rows: np.ndarray, logits: list[torch.Tensor]
) -> list[int]:
    masks = matchers.masks(rows)
    assert masks is not None
    entries, bits = masks
    count = len(rows)
    drawing = Drawing(
        rows=None,
        temperatures=torch.ones(count, dtype=torch.float64),
        limits=Limits(
            torch.zeros(count, dtype=torch.int64),
            torch.ones(count, dtype=torch.float64),
            torch.zeros(count, dtype=torch.float64),
        ),
        draws=torch.full((count,), 0.5, dtype=torch.float64),
    )
    token_masks = TokenMasks(torch.from_numpy(entries), torch.from_numpy(bits))
    drawn = settled(sample(torch.stack(logits), SamplingColumns(drawing), token_masks))
    assert drawn.is_valid.all()
    return [int(token) for token in drawn.token_ids]


def family(pid: int | None) -> list[psutil.Process]:
    assert pid is not None
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextlib.contextmanager
def suspended(grammars: Grammars) -> Iterator[None]:
    """The worker, so that it is asked and does not answer."""
    processes = family(grammars.worker_pid)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


_DEMO = Language(MODEL_DIR, 1536, (2,))
_PADDED = Language(MODEL_DIR, 1600, (2, 0))
