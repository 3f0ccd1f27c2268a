"""How many held-out questions does a model folder answer word for word? Greedy, in fp32.

python -m tools.demo_model.evaluate [FOLDER] [--misses]
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepflow.demo import MODEL_DIR
from tools.demo_model.corpus import Pair, read_held_out

ANSWER_TOKENS_MAX = 200
BATCH_SIZE = 64


@dataclass(frozen=True)
class Score:
    """`misses` holds (pair, what the model said instead)."""

    total: int
    misses: tuple[tuple[Pair, str], ...]

    @property
    def exact(self) -> float:
        return 1 - len(self.misses) / self.total


def score_by_kind(folder: Path, pairs: Sequence[Pair]) -> dict[str, Score]:
    """The scores of "topic" and of "sum" questions, apart."""
    said = answer(folder, [pair.question for pair in pairs])
    results = defaultdict(list)
    for pair, text in zip(pairs, said, strict=True):
        results[pair.kind].append((pair, text))
    return {
        kind: Score(len(rows), tuple(row for row in rows if row[0].answer != row[1]))
        for kind, rows in results.items()
    }


def answer(folder: Path, questions: Sequence[str]) -> list[str]:
    """The model's answers, in the order of the questions."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    ]
    said: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = tokenizer(
            prompts[start : start + BATCH_SIZE],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        )
        out = model.generate(
            input_ids=rows["input_ids"],
            attention_mask=rows["attention_mask"],
            max_new_tokens=ANSWER_TOKENS_MAX,
            do_sample=False,
        )
        new = out[:, rows["input_ids"].shape[1] :]
        said += tokenizer.batch_decode(new, skip_special_tokens=True)
    return said


def report(scores: dict[str, Score]) -> str:
    lines = [f"{kind}: {s.exact:.1%} exact of {s.total}" for kind, s in sorted(scores.items())]
    total = sum(s.total for s in scores.values())
    missed = sum(len(s.misses) for s in scores.values())
    return "\n".join([*lines, f"all: {1 - missed / total:.1%} exact of {total}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL_DIR, help="the model folder")
    parser.add_argument("--misses", action="store_true", help="show each wrong answer")
    arguments = parser.parse_args()
    scores = score_by_kind(arguments.folder, read_held_out())
    if arguments.misses:
        for score in scores.values():
            for pair, text in score.misses:
                print(f"? {pair.question}\n  want {pair.answer}\n  said {text}")
    print(report(scores))


if __name__ == "__main__":
    main()
