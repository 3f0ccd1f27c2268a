"""Chats as token ids, packed into batches of about equal size."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedTokenizerFast

from tools.demo_model.corpus import Corpus, Pair

TURNS = (1, 1, 1, 1, 1, 2, 2, 3)  # drawn from, for the length of one chat
# Choosing the answer is hard, finishing it is not: most chats end this far into their last answer.
CUT_SHARE = 0.75
CUT_TOKENS = 12
SYSTEM_SHARE = 0.15
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the demo model of DeepFlow.",
    "Answer in short sentences.",
    "You answer questions about the platform.",
    "Be friendly and be brief.",
    "You are a careful assistant. Say only what you know.",
)
CHATS_SORTED_AT_ONCE = 2048
UNLABELLED = -100


@dataclass(frozen=True)
class Batch:
    """All are [chats, tokens]; only answers carry labels, and each answer weighs the same."""

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@dataclass
class Chat:
    """One row of a batch, before padding."""

    ids: list[int]
    labels: list[int]
    weights: list[float]

    def add(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += [UNLABELLED] * len(ids)
        self.weights += [0.0] * len(ids)

    def add_answer(self, ids: list[int]) -> None:
        self.ids += ids
        self.labels += ids
        self.weights += [1 / len(ids)] * len(ids)


class ChatCoder:
    """Writes chats as ids, exactly as the chat template would."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, system: str | None, pairs: list[Pair], cut: bool) -> Chat:
        """`cut` drops all but the first tokens of the last answer."""
        chat = Chat([], [], [])
        chat.add(
            self._ids("<|begin|>" if system is None else f"<|begin|><|system|>{system}<|end|>")
        )
        for pair in pairs:
            question = f"<|user|>{pair.question.strip()}<|end|><|assistant|>"
            chat.add(self._tokenizer.encode(question, add_special_tokens=False))
            answer = self._ids(pair.answer + "<|end|>")
            chat.add_answer(answer[:CUT_TOKENS] if cut and pair is pairs[-1] else answer)
        return chat

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]


def batches(corpus: Corpus, coder: ChatCoder, tokens_max: int, seed: int) -> Iterator[Batch]:
    """Endless batches of at most `tokens_max` tokens with their padding; chats of like length
    share a batch."""
    draw, pairs = random.Random(seed), corpus.stream(seed)
    while True:
        chats = [_chat(pairs, coder, draw) for _ in range(CHATS_SORTED_AT_ONCE)]
        chats.sort(key=lambda chat: len(chat.ids))
        ready = list(_pack(chats, tokens_max))
        draw.shuffle(ready)
        yield from ready


def _chat(pairs: Iterator[Pair], coder: ChatCoder, draw: random.Random) -> Chat:
    system = draw.choice(SYSTEM_PROMPTS) if draw.random() < SYSTEM_SHARE else None
    said = list(islice(pairs, draw.choice(TURNS)))
    return coder.encode(system, said, cut=draw.random() < CUT_SHARE)


def _pack(chats: list[Chat], tokens_max: int) -> Iterator[Batch]:
    start = 0
    while start < len(chats):
        end = start + 1
        while end < len(chats) and len(chats[end].ids) * (end + 1 - start) <= tokens_max:
            end += 1
        yield _pad(chats[start:end])
        start = end


def _pad(chats: list[Chat]) -> Batch:
    missing = [len(chats[-1].ids) - len(chat.ids) for chat in chats]
    rows = list(zip(chats, missing, strict=True))
    return Batch(
        torch.tensor([chat.ids + [0] * n for chat, n in rows]),
        torch.tensor([chat.labels + [UNLABELLED] * n for chat, n in rows]),
        torch.tensor([chat.weights + [0.0] * n for chat, n in rows]),
    )
