"""How evaluation and load harnesses call: completions with echo and logprobs, SSE with usage."""

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PAIRS = [
    ("What is a task executor?", " A task executor"),
    ("Three plus four is", " seven"),
    ("The gateway", " validates requests and streams answers."),
]


@pytest.fixture(scope="module")
def reference(demo_folder: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    return tokenizer, AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)


def expected(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = torch.tensor([context + continuation])
    with torch.inference_mode():
        logprobs = model(ids).logits[0].float().log_softmax(-1)
    rows = logprobs[len(context) - 1 : -1]
    likelihood = rows.gather(1, torch.tensor(continuation)[:, None]).sum().item()
    return likelihood, rows.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("as_tokens", [True, False], ids=["token ids", "texts"])
def test_likelihoods_as_an_evaluation_harness_reads_them(
    http: httpx.Client, model: str, reference: tuple[Any, Any], as_tokens: bool
) -> None:
    """One request, a batch of prompts: context and continuation echoed, one token drawn."""
    tokenizer, torch_model = reference
    contexts = [tokenizer.encode(context) for context, _ in PAIRS]
    wholes = [tokenizer.encode(context + rest) for context, rest in PAIRS]
    prompts = wholes if as_tokens else [context + rest for context, rest in PAIRS]
    reply = http.post(
        "/v1/completions",
        json={
            "model": model,
            "prompt": prompts,
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
    )
    assert reply.status_code == 200, reply.text
    choices = sorted(reply.json()["choices"], key=itemgetter("index"))
    for choice, context, whole in zip(choices, contexts, wholes, strict=True):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert len(logprobs["tokens"]) == len(whole) + 1
        tokens = logprobs["token_logprobs"][len(context) : -1]
        tops = logprobs["top_logprobs"][len(context) : -1]
        is_greedy = all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))
        likelihood, was_greedy = expected(torch_model, context, whole[len(context) :])
        assert sum(tokens) == pytest.approx(likelihood, abs=1e-3)
        assert is_greedy == was_greedy


def test_a_prompt_alone_is_scored_without_drawing(http: httpx.Client, model: str) -> None:
    reply = http.post(
        "/v1/completions",
        json={
            "model": model,
            "prompt": "The gateway",
            "max_tokens": 0,
            "echo": True,
            "logprobs": 0,
        },
    )
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    assert choice["text"] == "The gateway"
    assert choice["finish_reason"] == "length"
    assert reply.json()["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["token_logprobs"]) == reply.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completions"])
def test_a_stream_as_a_load_generator_reads_it(
    http: httpx.Client, model: str, is_chat: bool
) -> None:
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
    }
    if is_chat:
        content = [{"type": "text", "text": "What is 2 + 3?"}]
        body |= {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 16}
        path = "/v1/chat/completions"
    else:
        body |= {"prompt": "What is 2 + 3?", "max_tokens": 16, "logprobs": None}
        path = "/v1/completions"
    pieces, usages = [], []
    with http.stream("POST", path, json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            data = line.removeprefix("data: ")
            if not line or data == "[DONE]":
                continue
            event = json.loads(data)
            if choices := event.get("choices"):
                pieces.append(choices[0]["delta"].get("content") if is_chat else choices[0]["text"])
            if usage := event.get("usage"):
                usages.append(usage)
    assert [usage["completion_tokens"] for usage in usages] == [16]
    assert "".join(piece or "" for piece in pieces)
