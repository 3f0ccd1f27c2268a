"""Log probabilities, echoes and token ids, as the real openai client reads them."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from deepflow.v1 import types_pb2 as types
from tests.integration.gateway_support import (
    MODEL,
    FakeJob,
    FakeJobExecutor,
    GatewayStand,
    gateway_stand,
    openai_client,
)

MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def hold_some_back(job: FakeJob) -> None:
    """The second token's text comes with the third, the last token shows none."""
    job.admit()
    for choice in range(job.choices):
        if job.job.return_prompt:
            job.prompt("Hö", " there", choice=choice, mark="<s>")
    for choice in range(job.choices):
        job.tokens("a", "", choice=choice)
        job.tokens("bc", choice=choice)
        job.tokens("", choice=choice)
        job.finish(choice)


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    executor = FakeJobExecutor()
    executor.script = hold_some_back
    async with gateway_stand(executor) as stand:
        yield stand


@pytest.fixture
async def client(stand: GatewayStand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(stand) as client:
        yield client


async def sampling(stand: GatewayStand) -> types.SamplingParams:
    return (await stand.executor.jobs.get()).job.sampling


async def test_chat_in_one_piece(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, logprobs=True, top_logprobs=2
    )
    assert (await sampling(stand)).logprobs == 2
    for choice in answer.choices:
        assert choice.message.content == "abc"
        assert choice.logprobs is not None and choice.logprobs.content is not None
        content = choice.logprobs.content
        assert [(t.token, t.logprob) for t in content] == [
            ("a", -0.25),
            ("", -0.5),
            ("bc", -0.75),
            ("", -1.0),
        ]
        assert content[2].bytes == [98, 99]
        assert [(t.token, t.logprob) for t in content[0].top_logprobs] == [
            ("alt0", 0.0),
            ("alt1", -0.125),
        ]


async def test_logprobs_without_alternatives(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True)
    found = answer.choices[0].logprobs
    assert found is not None and found.content is not None
    assert [t.top_logprobs for t in found.content] == [[]] * 4
    params = await sampling(stand)
    assert params.HasField("logprobs") and params.logprobs == 0


async def test_nobody_asked(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].logprobs is None
    assert not (await sampling(stand)).HasField("logprobs")


async def test_no_token_of_a_chat_stream_loses_its_logprob(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    told = [
        (c.delta.content, [t.logprob for t in c.logprobs.content or []])
        for c in choices
        if c.logprobs is not None
    ]
    # Text that was held back comes with the tokens that it is made of; what ends the answer last.
    assert told == [("a", [-0.25]), ("bc", [-0.5, -0.75]), ("", [-1.0])]
    assert choices[-1].finish_reason == "stop" and choices[-1].logprobs is None


async def test_completions_have_parallel_lists(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="x", logprobs=1)
    choice = answer.choices[0]
    assert choice.text == "abc" and choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "", "bc", ""]
    assert choice.logprobs.token_logprobs == [-0.25, -0.5, -0.75, -1.0]
    assert choice.logprobs.text_offset == [0, 1, 1, 3]
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.top_logprobs[0] == {"alt0": -0.125, "a": -0.25}


async def test_an_echo_begins_with_the_prompt(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["x", "y"], n=2, echo=True)
    assert [c.text for c in answer.choices] == ["Hö thereabc"] * 4
    assert not (await sampling(stand)).HasField("prompt_logprobs")


async def test_an_echo_with_logprobs_tells_those_of_the_prompt(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    answer = await client.completions.create(model=MODEL, prompt="x", echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "Hö thereabc" and choice.logprobs is not None
    assert choice.logprobs.tokens == ["<s>", "Hö", " there", "a", "", "bc", ""]
    assert choice.logprobs.text_offset == [0, 0, 2, 8, 9, 9, 11]
    logprobs = choice.logprobs.token_logprobs
    assert logprobs == [None, -0.5, -0.75, -0.25, -0.5, -0.75, -1.0]
    tops = choice.logprobs.top_logprobs
    assert tops is not None and len(tops) == len(logprobs) and tops[0] is None
    assert list(tops[1]) == ["alt0", "alt1", "Hö"]
    params = await sampling(stand)
    assert (params.prompt_logprobs, params.logprobs) == (2, 2)


async def test_a_streamed_echo_is_one_chunk(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model=MODEL, prompt="x", echo=True, logprobs=0, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    assert [c.text for c in choices] == ["Hö there", "a", "bc", "", ""]
    assert choices[0].logprobs is not None and choices[1].logprobs is not None
    assert choices[0].logprobs.tokens == ["<s>", "Hö", " there"]
    assert choices[1].logprobs.text_offset == [8]


async def test_an_echo_alone_draws_nothing(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    async def only_the_prompt(job: FakeJob) -> None:
        job.admit()
        job.prompt("Hello", " world")
        job.finish(reason=types.FINISH_REASON_LENGTH)

    stand.executor.script = only_the_prompt
    answer = await client.completions.create(
        model=MODEL, prompt="x", echo=True, logprobs=1, max_tokens=0
    )
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("Hello world", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -0.5]
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    params = await sampling(stand)
    assert params.HasField("max_tokens") and params.max_tokens == 0


@pytest.mark.parametrize("count", [0, 2])
async def test_prompt_logprobs(client: openai.AsyncOpenAI, stand: GatewayStand, count: int) -> None:
    body = {"prompt_logprobs": count}
    chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=body)
    text = await client.completions.create(model=MODEL, prompt="x", extra_body=body)
    assert chat.model_extra is not None and text.choices[0].model_extra is not None
    for found in (
        chat.model_extra["prompt_logprobs"],
        text.choices[0].model_extra["prompt_logprobs"],
    ):
        assert [entry and list(entry) for entry in found] == [
            None,
            ["51", "80", "81"][: count + 1],
            ["52", "80", "81"][: count + 1],
        ]
        assert found[1]["51"] == {"logprob": -0.5, "rank": count + 1, "decoded_token": "Hö"}
        if count:
            assert found[2]["81"] == {"logprob": -0.625, "rank": 2, "decoded_token": "alt1"}
    assert chat.choices[0].message.content == "abc"


async def test_token_ids_of_a_chat(client: openai.AsyncOpenAI) -> None:
    body = {"return_token_ids": True}
    whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=body)
    assert whole.model_extra == {"prompt_token_ids": [50, 51, 52]}
    assert whole.choices[0].model_extra == {"token_ids": [10, 11, 12, 13]}
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=2, stream=True, extra_body=body
    )
    chunks = [chunk async for chunk in stream]
    prompts = [c.model_extra for c in chunks if c.model_extra]
    assert prompts == [{"prompt_token_ids": [50, 51, 52]}]
    for index in (0, 1):
        extra = [c.choices[0].model_extra for c in chunks if c.choices[0].index == index]
        assert [e["token_ids"] for e in extra if e] == [[10], [11], [12], [13]]


async def test_token_ids_of_completions(client: openai.AsyncOpenAI) -> None:
    body = {"return_token_ids": True}
    whole = await client.completions.create(
        model=MODEL, prompt=["x", "y"], logprobs=0, extra_body=body
    )
    for choice in whole.choices:
        assert choice.model_extra == {
            "prompt_token_ids": [50, 51, 52],
            "token_ids": [10, 11, 12, 13],
        }
        assert choice.text == "abc" and choice.logprobs is not None
    stream = await client.completions.create(
        model=MODEL, prompt="x", logprobs=0, stream=True, extra_body=body
    )
    choices = [chunk.choices[0] async for chunk in stream]
    assert choices[0].model_extra == {"prompt_token_ids": [50, 51, 52]}
    assert [c.logprobs.text_offset for c in choices if c.logprobs] == [[0], [1], [1], [3]]
    assert [c.model_extra for c in choices[1:5]] == [{"token_ids": [i]} for i in range(10, 14)]


async def test_tokens_without_their_scores_are_our_failure(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    async def forget(job: FakeJob) -> None:
        job.admit()
        job.job.sampling.ClearField("logprobs")
        job.tokens("a")

    stand.executor.script = forget
    with pytest.raises(openai.APIError, match="without their scores"):
        await client.completions.create(model=MODEL, prompt="x", logprobs=0)
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, stream=True
    )
    with pytest.raises(openai.APIError, match="without their scores"):
        _ = [chunk async for chunk in stream]
    stand.executor.script = hold_some_back
    answer = await client.completions.create(model=MODEL, prompt="x", logprobs=0)
    assert answer.choices[0].text == "abc"
