"""The real openai client against a real gateway; the job executor behind it follows a script."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from deepflow.errors import InvalidRequest, RateLimited, Unavailable
from tests.integration.gateway_support import (
    MODEL,
    WORDS,
    FakeJob,
    FakeJobExecutor,
    GatewayStand,
    gateway_stand,
)

TEXT = "".join(WORDS)
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    async with gateway_stand(FakeJobExecutor()) as stand:
        yield stand


@pytest.fixture
async def client(stand: GatewayStand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stand.url}/v1", api_key="none", max_retries=0, timeout=10
    ) as client:
        yield client


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "deepflow"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_chat_in_one_piece(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, seed=11)
    assert [c.message.content for c in answer.choices] == [TEXT, TEXT]
    assert [c.finish_reason for c in answer.choices] == ["stop", "stop"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2 * len(WORDS))
    submit = (await stand.executor.jobs.get()).submit
    assert submit.token_window == 1024 and submit.job.sampling.seed == 11


async def test_chat_as_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert "".join(text or "" for text in texts) == TEXT
    assert [text for text in texts if text] == [word for word in WORDS if word]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(WORDS)


async def test_an_answer_says_where_it_came_from_and_what_it_cost(
    client: openai.AsyncOpenAI,
) -> None:
    headers = {"x-request-id": "mine:1"}
    whole = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, extra_headers=headers
    )
    assert whole._request_id == "mine:1" and whole.model == MODEL
    assert whole.system_fingerprint and whole.id.startswith("chatcmpl-")
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 4
    stream = await client.completions.create(
        model=MODEL, prompt="x", n=2, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 2 * len(WORDS))


async def test_completions_of_several_prompts(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert {c.text for c in answer.choices} == {TEXT}
    assert answer.usage is not None and answer.usage.prompt_tokens == 14


async def test_completions_as_a_stream_with_token_ids(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model=MODEL, prompt=[1, 2, 3], stream=True, extra_body={"return_token_ids": True}
    )
    tokens = [(c.choices[0].text, c.choices[0].model_extra) async for c in stream]
    ids = [extra["token_ids"] for _, extra in tokens if extra and "token_ids" in extra]
    assert ids == [[10], [11], [12], [13], [14]]
    assert "".join(text for text, _ in tokens) == TEXT


async def test_the_blocking_client(stand: GatewayStand) -> None:
    def ask() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="none", timeout=10) as client:
            whole = client.chat.completions.create(model=MODEL, messages=MESSAGES)
            stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    with ThreadPoolExecutor(1) as pool:
        assert await asyncio.get_running_loop().run_in_executor(pool, ask) == (TEXT, TEXT)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (InvalidRequest("too long", param="messages"), openai.BadRequestError, 400),
        (RateLimited("slow down", retry_after_seconds=3), openai.RateLimitError, 429),
        (RateLimited("slow down"), openai.RateLimitError, 429),
        (Unavailable("full"), openai.InternalServerError, 503),
    ],
)
async def test_a_refused_job_is_an_http_error(
    client: openai.AsyncOpenAI,
    stand: GatewayStand,
    error: Any,
    kind: type[openai.APIStatusError],
    status: int,
) -> None:
    async def refuse(job: FakeJob) -> None:
        job.refuse(error)

    stand.executor.script = refuse
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert raised.value.status_code == status
    assert raised.value.param == (error.param or None)
    assert ("retry-after" in raised.value.response.headers) == (status != 400)
