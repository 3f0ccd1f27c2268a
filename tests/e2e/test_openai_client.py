"""The real openai client against the whole stack."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stack import Stack

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is a task executor?"}
]


def ask(client: openai.OpenAI, model: str, **options: Any) -> str:
    reply = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        **options,
    )
    content: str = reply.choices[0].message.content
    return content


def test_the_demo_model_makes_sense(client: openai.OpenAI, model: str) -> None:
    answer = ask(client, model)
    assert "task executor" in answer.lower()
    assert answer.endswith(".")


def test_small_sums(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is 7 + 5?"}], temperature=0
    )
    assert "12" in (reply.choices[0].message.content or "")


def test_a_streamed_answer_is_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
    )
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_greedy_equals_transformers(client: openai.OpenAI, model: str, demo_folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_folder)
    reference: Any = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    want = reference.generate(ids, do_sample=False, max_new_tokens=64)[0, ids.shape[1] :].tolist()
    reply = client.completions.create(
        model=model,
        prompt=ids[0].tolist(),
        temperature=0,
        max_tokens=64,
        extra_body={"return_token_ids": True},
    )
    assert reply.choices[0].token_ids == want  # type: ignore[attr-defined]


def test_a_seed_repeats_a_draw_and_choices_differ(client: openai.OpenAI, model: str) -> None:
    def draw(seed: int) -> list[str]:
        reply = client.completions.create(
            model=model, prompt="The", temperature=2.0, max_tokens=16, n=3, seed=seed
        )
        return [choice.text for choice in sorted(reply.choices, key=lambda c: c.index)]

    first = draw(11)
    assert first == draw(11)
    assert first != draw(12)
    assert len(set(first)) == 3


def test_stop_strings_cut_the_answer(client: openai.OpenAI, model: str) -> None:
    whole = ask(client, model)
    word = whole.split()[3]
    cut = ask(client, model, stop=[word])
    assert cut == whole[: whole.index(word)]


def test_max_tokens_and_ignore_eos(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt="x", max_tokens=100, temperature=0, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 100
    assert reply.choices[0].finish_reason == "length"


def test_prompt_lists_and_n_are_numbered_in_order(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt=["one", "two"], n=2, max_tokens=4, temperature=0, echo=False
    )
    texts = {choice.index: choice.text for choice in reply.choices}
    assert sorted(texts) == [0, 1, 2, 3]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


async def test_many_streams_at_once_do_not_mix(stack: Stack, model: str) -> None:
    questions = [f"What is {a} + {b}?" for a in range(2, 8) for b in range(1, 5)]
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:

        async def answer(question: str) -> str:
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                stream=True,
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        alone = [await answer(question) for question in questions]
        together = await asyncio.gather(*map(answer, questions))
    assert together == alone
    assert len(set(alone)) > len(questions) // 3


def test_unknown_models_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "gpt-99")
    assert caught.value.param == "model" or "gpt-99" in caught.value.message


def test_a_prompt_over_the_context_is_refused_by_name(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=[5] * 5000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert ask(client, model)
