"""The demo model in int8 knows what it knows in fp32."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.engine import FlowServe
from tools.demo_model.corpus import read_held_out

EVERY = 8  # of the held-out questions
LOSS_MAX = 0.01


def chats() -> list[tuple[list[int], int]]:
    """Held-out questions with their answers, and where the answer begins."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    found = []
    for pair in read_held_out()[::EVERY]:
        question = [{"role": "user", "content": pair.question}]
        both = [*question, {"role": "assistant", "content": pair.answer}]
        asked = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_dict=False
        )
        found.append((tokenizer.apply_chat_template(both, return_dict=False), len(asked)))
    return found


def logprobs(dtype: str, prompts: Sequence[list[int]]) -> list[list[float]]:
    """Of every token of each prompt but the first."""
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    with FlowServe(MODEL_DIR, dtype=dtype) as engine:
        return [answer.prompt_logprobs for answer in engine.generate(prompts, asked)]


def perplexity(scores: Sequence[float]) -> float:
    return math.exp(-sum(scores) / len(scores))


def test_perplexity_is_that_of_fp32() -> None:
    rows = chats()
    prompts = [tokens for tokens, _ in rows]
    answers, texts = [], []
    for dtype in ("float32", "int8"):
        scored = logprobs(dtype, prompts)
        texts.append(perplexity([it for row in scored for it in row]))
        # Token i + 1 has score i.
        known = [row[begin - 1 :] for row, (_, begin) in zip(scored, rows, strict=True)]
        answers.append(perplexity([it for row in known for it in row]))
    assert answers[0] < 1.05, "the model does not know these answers: the test says nothing"
    assert answers[1] <= answers[0] * (1 + LOSS_MAX)
    # The questions are no text that the model was made to predict, but are not forgotten either.
    assert texts[1] <= texts[0] * (1 + 2 * LOSS_MAX)
