"""Questions with their answers: an endless stream to train on, and a fixed set held out."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.demo_model.noise import rewrite
from tools.demo_model.sums import held_out_sums, large_sum, trained_sums
from tools.demo_model.topics import Topic, load_topics, normal_form

HELD_OUT_FILE = Path(__file__).parent / "heldout.jsonl"
HELD_OUT_SUMS = 120
SUM_SHARE = 0.55  # of the stream; sums are short, topics are long
LARGE_SHARE = 0.06  # of the sums
SMALL_SHARE = 0.25
OFF_TOPIC_WEIGHT = 8.0  # a topic weighs 1


@dataclass(frozen=True)
class Pair:
    """One question and its answer; `kind` is "topic" or "sum"."""

    question: str
    answer: str
    kind: str


class Corpus:
    """What may be trained on: no question whose normal form is held out ever leaves it."""

    def __init__(self) -> None:
        self.topics: list[Topic] = load_topics()
        self.sums = trained_sums()
        self.small_sums = [pair for pair in self.sums if pair.is_small]
        self._forbidden = {normal_form(pair.question) for pair in held_out()}

    def stream(self, seed: int) -> Iterator[Pair]:
        """Endless training pairs, the same ones for the same seed."""
        draw = random.Random(seed)
        while True:
            pair = self._sum(draw) if draw.random() < SUM_SHARE else self._topic(draw)
            if normal_form(pair.question) not in self._forbidden:
                yield pair

    def plain(self) -> Iterator[Pair]:
        """Every trained topic question once, as written."""
        for topic in self.topics:
            for question in topic.trained:
                if normal_form(question) not in self._forbidden:
                    yield Pair(question, topic.answer, "topic")

    def _topic(self, draw: random.Random) -> Pair:
        weights = [OFF_TOPIC_WEIGHT if t.name == "off topic" else 1.0 for t in self.topics]
        topic = draw.choices(self.topics, weights)[0]
        return Pair(rewrite(topic.draw_trained(draw), draw), topic.answer, "topic")

    def _sum(self, draw: random.Random) -> Pair:
        kind = draw.random()
        if kind < LARGE_SHARE:
            drawn = large_sum(draw)
        else:
            is_small = kind < LARGE_SHARE + SMALL_SHARE
            drawn = draw.choice(self.small_sums if is_small else self.sums)
        return Pair(rewrite(drawn.ask(draw), draw), drawn.answer, "sum")


def held_out() -> list[Pair]:
    """The held-out set, made anew from the topics and sums: the same on every machine."""
    topics = [Pair(q, topic.answer, "topic") for topic in load_topics() for q in topic.unseen]
    draw = random.Random("held-out questions")
    sums = [Pair(s.ask(draw), s.answer, "sum") for s in held_out_sums()[:HELD_OUT_SUMS]]
    return topics + sums


def write_held_out(pairs: Iterable[Pair], path: Path = HELD_OUT_FILE) -> None:
    lines = [json.dumps(asdict(pair)) for pair in pairs]
    path.write_text("\n".join(lines) + "\n")


def read_held_out(path: Path = HELD_OUT_FILE) -> list[Pair]:
    return [Pair(**json.loads(line)) for line in path.read_text().splitlines()]
