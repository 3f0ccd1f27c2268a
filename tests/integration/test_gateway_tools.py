"""Tools and bound answers, as the real openai client sends and reads them."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pydantic
import pytest

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2 as jobs
from deepflow.v1 import types_pb2 as types
from tests.integration.gateway_support import (
    MODEL,
    FakeJob,
    FakeJobExecutor,
    GatewayStand,
    gateway_stand,
    openai_client,
)

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Oslo and Rome?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


async def call_twice(job: FakeJob) -> None:
    job.admit()
    for choice in range(job.choices):
        job.tokens("", "", choice=choice)
        job.tool_call(0, "weather", '{"city"', ': "Oslo"}', choice=choice, call_id="call-1")
        job.tool_call(1, "weather", '{"city": "Rome"}', choice=choice, call_id="call-2")
        job.tokens("", choice=choice)
        job.finish(choice, reason=types.FINISH_REASON_TOOL_CALLS)


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    executor = FakeJobExecutor()
    executor.script = call_twice
    async with gateway_stand(executor) as stand:
        yield stand


@pytest.fixture
async def client(stand: GatewayStand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(stand) as client:
        yield client


async def submitted(stand: GatewayStand) -> jobs.Job:
    return (await stand.executor.jobs.get()).job


async def test_calls_in_one_piece(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[WEATHER, CLOCK], parallel_tool_calls=True
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    calls: Any = choice.message.tool_calls
    assert [(c.id, c.type, c.function.name, c.function.arguments) for c in calls] == [
        ("call-1", "function", "weather", '{"city": "Oslo"}'),
        ("call-2", "function", "weather", '{"city": "Rome"}'),
    ]
    chat = (await submitted(stand)).chat
    assert [tool.name for tool in chat.tools] == ["weather", "clock"]
    assert chat.tools[0].description == "Of a city."
    assert json.loads(chat.tools[0].parameters_json) == WEATHER["function"]["parameters"]
    assert not chat.tools[1].parameters_json
    assert chat.tool_choice.mode == jobs.TOOL_MODE_AUTO and not chat.single_tool_call


async def test_text_before_calls_stays(client: openai.AsyncOpenAI, stand: GatewayStand) -> None:
    async def talk_and_call(job: FakeJob) -> None:
        job.admit()
        job.tokens("I will look.")
        job.tool_call(0, "weather", "{}", call_id="call-1")
        job.finish(reason=types.FINISH_REASON_TOOL_CALLS)

    stand.executor.script = talk_and_call
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[WEATHER], logprobs=True
    )
    assert answer.choices[0].message.content == "I will look."
    assert len(answer.choices[0].message.tool_calls or []) == 1


async def test_streamed_calls_add_up(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER],
        n=2,
        stream_options={"include_usage": True},
    ) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_completion()
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        calls: Any = choice.message.tool_calls
        assert [(c.index, c.id, c.function.name) for c in calls] == [
            (0, "call-1", "weather"),
            (1, "call-2", "weather"),
        ]
        assert [c.function.arguments for c in calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert answer.usage is not None and answer.usage.completion_tokens == 6


async def test_pieces_of_a_call_and_the_logprobs_of_its_tokens(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[WEATHER], logprobs=True, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    calls = [c.delta.tool_calls[0] for c in choices if c.delta.tool_calls]
    told = [(c.index, c.id, c.type, c.function and c.function.name) for c in calls]
    assert told == [
        (0, "call-1", "function", "weather"),
        (0, None, None, None),
        (1, "call-2", "function", "weather"),
    ]
    logprobs = [len(c.logprobs.content or []) for c in choices if c.logprobs]
    assert logprobs == [2, 1], "with the first piece of the call, and before the end"


async def test_the_blocking_client_reads_calls(stand: GatewayStand) -> None:
    def ask() -> list[str]:
        with openai.OpenAI(base_url=f"{stand.url}/v1", api_key="none", timeout=10) as client:
            with client.chat.completions.stream(
                model=MODEL, messages=MESSAGES, tools=[WEATHER]
            ) as stream:
                stream.until_done()
                calls: Any = stream.get_final_completion().choices[0].message.tool_calls
            return [c.function.arguments for c in calls]

    with ThreadPoolExecutor(1) as pool:
        arguments = await asyncio.get_running_loop().run_in_executor(pool, ask)
    assert arguments == ['{"city": "Oslo"}', '{"city": "Rome"}']


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ("none", jobs.TOOL_MODE_NONE, ""),
        ("auto", jobs.TOOL_MODE_AUTO, ""),
        ("required", jobs.TOOL_MODE_REQUIRED, ""),
        ({"type": "function", "function": {"name": "clock"}}, jobs.TOOL_MODE_NAMED, "clock"),
    ],
)
async def test_which_tool_must_be_called(
    client: openai.AsyncOpenAI, stand: GatewayStand, choice: Any, mode: int, name: str
) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER, CLOCK],
        tool_choice=choice,
        parallel_tool_calls=False,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    chat = (await submitted(stand)).chat
    assert (chat.tool_choice.mode, chat.tool_choice.name) == (mode, name)
    assert chat.single_tool_call
    assert json.loads(chat.template_arguments_json) == {"enable_thinking": False}


async def test_a_conversation_with_calls_goes_on(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    first = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER])
    await submitted(stand)
    said: Any = first.choices[0].message
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "sun"}]}
        for call in said.tool_calls
    ]
    opening: Any = [
        {"role": "developer", "content": "Be brief."},
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Please.", "name": "ann"},
    ]
    await client.chat.completions.create(
        model=MODEL, messages=[*opening, said, *results], tools=[WEATHER]
    )
    messages = (await submitted(stand)).chat.messages
    roles = ["developer", "user", "assistant", "user", "assistant", "tool", "tool"]
    assert [m.role for m in messages] == roles
    assert (messages[2].content, messages[3].name) == ("No.", "ann")
    assert not messages[4].HasField("content")
    assert [(c.id, c.name, c.arguments_json) for c in messages[4].tool_calls] == [
        ("call-1", "weather", '{"city": "Oslo"}'),
        ("call-2", "weather", '{"city": "Rome"}'),
    ]
    assert [(m.tool_call_id, m.content) for m in messages[5:]] == [
        ("call-1", "sun"),
        ("call-2", "sun"),
    ]


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_an_answer_is_parsed_into_a_model(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    async def describe(job: FakeJob) -> None:
        job.admit()
        job.tokens('{"name": "Oslo",', ' "people": 717710}')
        job.finish()

    stand.executor.script = describe
    answer = await client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Oslo", people=717710)
    grammar = (await submitted(stand)).sampling.grammar
    assert grammar.param == "response_format.json_schema.schema"
    assert json.loads(grammar.json_schema)["required"] == ["name", "people"]


@pytest.mark.parametrize(
    ("field", "kind", "value", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}', ""),
        ({"guided_json": {"type": "array"}}, "json_schema", '{"type":"array"}', ""),
        ({"guided_json": '{ "type": "array"}'}, "json_schema", '{"type":"array"}', ""),
        ({"guided_regex": "a|b"}, "regex", "a|b", ""),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"], ""),
        ({"structured_outputs": {"json": {}}}, "json_schema", "{}", "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", ["a"], "structured_outputs.choice"),
    ],
)
async def test_what_binds_an_answer_is_one_grammar(
    client: openai.AsyncOpenAI,
    stand: GatewayStand,
    field: dict[str, Any],
    kind: str,
    value: Any,
    param: str,
) -> None:
    await client.completions.create(model=MODEL, prompt="x", extra_body=field)
    grammar = (await submitted(stand)).sampling.grammar
    assert grammar.WhichOneof("kind") == kind
    found = getattr(grammar, kind)
    assert (list(found.values) if kind == "choice" else found) == value
    assert grammar.param == (param or next(iter(field)))


async def test_a_schema_that_the_engine_refuses_names_its_field(
    client: openai.AsyncOpenAI, stand: GatewayStand
) -> None:
    async def refuse(job: FakeJob) -> None:
        param = job.job.sampling.grammar.param
        job.refuse(InvalidRequest("'type' must be a string", param=param))

    stand.executor.script = refuse
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_body={"guided_json": {"type": 5}}
        )
    assert raised.value.param == "guided_json"
