"""Every feature of the API through the whole mesh, with the real openai client."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stack import Stack

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is a task executor?"}
]


PROMPT = "The gateway"


class Reference:
    """transformers on the demo model."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)
        return ids

    def generate(self, prompt: list[int], tokens: int, **options: Any) -> list[int]:
        ids = torch.tensor([prompt])
        options |= {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
        with torch.inference_mode():
            answer = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        new: list[int] = answer[0, len(prompt) :].tolist()
        return new

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)


@pytest.fixture(scope="module")
def reference(demo_folder: Path) -> Reference:
    return Reference(demo_folder)


@pytest.fixture(scope="module")
def complete(client: openai.OpenAI, model: str) -> Any:
    def call(prompt: Any = PROMPT, **options: Any) -> Any:
        extra = {name: options.pop(name) for name in list(options) if name not in _KNOWN}
        return client.completions.create(model=model, prompt=prompt, extra_body=extra, **options)

    return call


_KNOWN = {
    "temperature", "top_p", "n", "seed", "stop", "max_tokens", "logprobs", "echo", "stream",
    "logit_bias", "presence_penalty", "frequency_penalty", "stream_options", "best_of",
}  # fmt: skip


# ── log probabilities ────────────────────────────────────────────────────────────────────────


def test_chat_logprobs_are_those_of_transformers(
    client: openai.OpenAI, model: str, reference: Reference
) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=3,
        extra_body={"return_token_ids": True},
    )
    choice: Any = reply.choices[0]
    content = choice.logprobs.content
    prompt = reply.model_extra["prompt_token_ids"]  # type: ignore[index]
    ids = choice.token_ids
    assert "".join(token.token for token in content).startswith(choice.message.content)
    rows = reference.logprobs(prompt + ids)[len(prompt) - 1 : -1]
    for token, token_id, row in zip(content, ids, rows, strict=True):
        assert token.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        best = row.topk(3).values.tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    def ask(stream: bool) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 7 + 5?"}],
            max_tokens=20,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            stream=stream,
        )

    whole = [token.model_dump() for token in ask(False).choices[0].logprobs.content]
    streamed = [
        token.model_dump()
        for chunk in ask(True)
        for choice in chunk.choices
        if choice.logprobs and choice.logprobs.content
        for token in choice.logprobs.content
    ]
    assert streamed == whole


def test_prompt_logprobs(complete: Any, reference: Reference) -> None:
    reply = complete(prompt_logprobs=1, max_tokens=1)
    scores = reply.choices[0].prompt_logprobs
    ids = reference.encode(PROMPT)
    assert scores[0] is None
    for position, score in enumerate(scores[1:], 1):
        row = reference.logprobs(ids)[position - 1]
        own = score[str(ids[position])]
        assert own["logprob"] == pytest.approx(row[ids[position]].item(), abs=1e-4)
        assert own["rank"] == int((row > row[ids[position]]).sum()) + 1


def test_echo_puts_the_prompt_first(complete: Any) -> None:
    plain = complete(max_tokens=6, temperature=0).choices[0].text
    assert complete(max_tokens=6, temperature=0, echo=True).choices[0].text == PROMPT + plain
    pieces = complete(max_tokens=6, temperature=0, echo=True, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == PROMPT + plain


# ── sampling ─────────────────────────────────────────────────────────────────────────────────


def test_repetition_penalty_is_that_of_transformers(complete: Any, reference: Reference) -> None:
    reply = complete(
        temperature=0, repetition_penalty=1.3, max_tokens=24, ignore_eos=True, return_token_ids=True
    )
    prompt = reference.encode(PROMPT)
    wanted = reference.generate(prompt, 24, repetition_penalty=1.3, eos_token_id=None)
    assert reply.choices[0].token_ids == wanted


def test_a_bias_forces_and_forbids(complete: Any) -> None:
    def ids(**options: Any) -> list[int]:
        reply = complete(max_tokens=8, ignore_eos=True, return_token_ids=True, **options)
        drawn: list[int] = reply.choices[0].token_ids
        return drawn

    assert ids(temperature=1, logit_bias={"100": 100}) == [100] * 8
    greedy = ids(temperature=0)
    assert greedy[0] not in ids(temperature=0, logit_bias={str(greedy[0]): -100})


def test_penalties_make_a_forced_token_give_way(complete: Any) -> None:
    def count(**penalty: float) -> int:
        reply = complete(
            max_tokens=30,
            temperature=0,
            ignore_eos=True,
            return_token_ids=True,
            logit_bias={"100": 25},
            **penalty,
        )
        return int(reply.choices[0].token_ids.count(100))

    assert count() == 30
    assert count(frequency_penalty=2.0) < 30
    assert count(presence_penalty=2.0) == 30  # once taken off, it is still ahead


def test_the_only_candidate_is_the_greedy_one(complete: Any) -> None:
    greedy = complete(temperature=0, max_tokens=16).choices[0].text
    assert complete(temperature=2, top_k=1, max_tokens=16).choices[0].text == greedy
    assert complete(temperature=2, min_p=1.0, max_tokens=16).choices[0].text == greedy


def test_seed_and_choice_alone_decide(complete: Any) -> None:
    options = {"temperature": 1.5, "max_tokens": 12, "seed": 11}
    three = [choice.text for choice in complete(n=3, **options).choices]
    assert len(set(three)) == 3
    assert complete(**options).choices[0].text == three[0]
    both = complete(prompt=["The gateway", "A job"], n=2, **options)
    assert [choice.text for choice in both.choices][:2] == three[:2]


def test_min_tokens_and_stop_tokens(complete: Any) -> None:
    def ids(**options: Any) -> list[int]:
        reply = complete(prompt="Q", temperature=0, max_tokens=60, return_token_ids=True, **options)
        drawn: list[int] = reply.choices[0].token_ids
        return drawn

    answer = ids(ignore_eos=True)
    stop = next(token for token in answer[5:] if token not in answer[:5])
    ended = ids(ignore_eos=True, stop_token_ids=[stop])
    assert ended == answer[: answer.index(stop) + 1]
    longer = ids(ignore_eos=True, stop_token_ids=[stop], min_tokens=40)
    assert len(longer) >= 40
    assert stop not in longer[:39]


# ── structured output ────────────────────────────────────────────────────────────────────────


class City(BaseModel):
    name: Literal["Rome", "Oslo"]
    inhabitants: int = Field(ge=0, le=999)
    tags: list[Literal["big", "old"]] = Field(max_length=2)


def test_a_schema_is_kept(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.parse(
        model=model,
        messages=QUESTION,
        response_format=City,
        temperature=0.8,
        seed=3,
        max_tokens=400,
    )
    assert isinstance(reply.choices[0].message.parsed, City)


@pytest.mark.parametrize("stream", [False, True])
def test_json_object(http: httpx.Client, model: str, stream: bool) -> None:
    body = {
        "model": model,
        "messages": QUESTION,
        "response_format": {"type": "json_object"},
        "temperature": 1,
        "seed": 4,
        "max_tokens": 300,
        "stream": stream,
    }
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    if stream:
        events = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        reason = next(choice["finish_reason"] for choice in reversed(choices))
    else:
        choice = reply.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert text.lstrip().startswith("{")
    if reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_guided_choice_and_regex(complete: Any) -> None:
    words = ["alpha", "beta", 'with "quotes"']
    for seed in range(4):
        reply = complete(temperature=1.5, seed=seed, guided_choice=words, max_tokens=40)
        assert reply.choices[0].text in words
        assert reply.choices[0].finish_reason == "stop"
        date = complete(temperature=1, seed=seed, guided_regex="[0-9]{4}-[0-9]{2}", max_tokens=40)
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", date.choices[0].text)


@pytest.mark.parametrize(
    "body",
    [
        {"guided_regex": "(unclosed"},
        {"guided_json": {"type": "no such type"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}},
            }
        },
    ],
)
def test_a_bad_grammar_is_named(http: httpx.Client, model: str, body: dict[str, Any]) -> None:
    reply = http.post("/v1/chat/completions", json={"model": model, "messages": QUESTION, **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith(next(iter(body)))


# ── the rest ─────────────────────────────────────────────────────────────────────────────────


def test_cached_tokens_are_told(complete: Any) -> None:
    prompt = "The job executor places every task. " * 8
    first = complete(prompt=prompt, max_tokens=2, temperature=0).usage
    second = complete(prompt=prompt, max_tokens=2, temperature=0).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    assert 0 < second.prompt_tokens_details.cached_tokens < second.prompt_tokens


def test_text_to_tokens_and_back(http: httpx.Client, model: str, reference: Reference) -> None:
    text = "A naïve gateway 🎉"
    tokens = http.post("/tokenize", json={"model": model, "prompt": text}).json()
    assert tokens["tokens"] == reference.encode(text)
    assert tokens["count"] == len(tokens["tokens"])
    back = http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == text


def test_request_ids_go_through(http: httpx.Client, model: str) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": 1}
    reply = http.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json()["system_fingerprint"]


async def test_the_async_client_in_parallel(stack: Stack, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:

        async def ask(index: int) -> str:
            reply = await client.completions.create(
                model=model,
                prompt=PROMPT,
                temperature=1,
                seed=index % 4,
                max_tokens=10,
                extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1},
            )
            return reply.choices[0].text

        answers = await asyncio.gather(*map(ask, range(16)))
    assert answers[:4] * 4 == answers
