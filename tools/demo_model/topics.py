"""The topics of the demo model, read from the TOML files and spread out into plain questions."""

import itertools
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = ("topics.toml", "howto.toml", "offtopic.toml")
WORDINGS_MAX = 80  # of one question with slots; a sample is drawn beyond that
UNSEEN_FRAMES_PER_TOPIC = 2
FRAMED_SHARE = 0.65


@dataclass(frozen=True)
class Topic:
    """One answer and every question that leads to it; `unseen` ones are never trained on."""

    name: str
    answer: str
    framed: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]  # the wordings of each question
    unseen: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        return self.framed + tuple(itertools.chain.from_iterable(self.asked))

    def draw_trained(self, draw: random.Random) -> str:
        if self.framed and draw.random() < FRAMED_SHARE:
            return draw.choice(self.framed)
        return draw.choice(draw.choice(self.asked))


def load_topics() -> list[Topic]:
    """All topics, in file order. Raises ValueError where one question has two answers."""
    tables = [tomllib.loads((HERE / file).read_text()) for file in FILES]
    frames = tables[0]["frames"]
    words = {slot: list_ for table in tables for slot, list_ in table.get("words", {}).items()}
    entries = [entry for table in tables for entry in table["topic"]]
    topics = [_spread(entry, words, frames) for entry in entries]
    _refuse_two_answers(topics)
    return topics


def normal_form(question: str) -> str:
    """Questions that differ only in case, spaces or closing marks have one normal form."""
    kept = "".join(c for c in question.lower() if c not in ".,!?;:'\"`")
    return " ".join(kept.split())


def _spread(entry: dict[str, Any], words: dict[str, list[str]], frames: dict[str, Any]) -> Topic:
    draw = random.Random(entry["name"])
    terms = entry.get("terms", [])
    framed = tuple(frame.format(term=term) for frame in frames["trained"] for term in terms)
    asked = tuple(tuple(_wordings(ask, words, draw)) for ask in entry["ask"])
    unseen = list(entry["unseen"])
    if terms:
        # A draw of its own: new training questions must not change the held-out set.
        draw = random.Random(f"unseen {entry['name']}")
        chosen = draw.sample(frames["unseen"], UNSEEN_FRAMES_PER_TOPIC)
        unseen += [frame.format(term=draw.choice(terms)) for frame in chosen]
    return Topic(entry["name"], entry["answer"], framed, asked, tuple(unseen))


def _wordings(question: str, words: dict[str, list[str]], draw: random.Random) -> list[str]:
    slots = [slot for slot in words if "{" + slot + "}" in question]
    choices = list(itertools.product(*(words[slot] for slot in slots)))
    if len(choices) > WORDINGS_MAX:
        choices = draw.sample(choices, WORDINGS_MAX)
    return [question.format(**dict(zip(slots, choice, strict=True))) for choice in choices]


def _refuse_two_answers(topics: list[Topic]) -> None:
    owner: dict[str, str] = {}
    for topic in topics:
        for question in topic.trained + topic.unseen:
            first = owner.setdefault(normal_form(question), topic.name)
            if first != topic.name:
                raise ValueError(f"{question!r} belongs to both {first!r} and {topic.name!r}")
