"""Tools through a whole job executor: shown in the prompt, forced by a grammar, read in answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from deepflow.v1 import cluster_pb2, jobs_pb2
from deepflow.v1 import types_pb2 as types
from tests.integration.job_executor_rig import (
    FakeTaskExecutor,
    Gateway,
    Rig,
    executor,
    gateway,
    rig,
)
from tests.servers import until
from tests.unit.job_executor.model_folders import byte_level_tokenizer, write_folder

__all__ = ["executor", "gateway", "rig"]

# Short: the rig's context holds 200 tokens.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function | tojson }}{% endfor %}"
    "{% for message in messages %}{{ message.role + ':' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}"
    """{{ '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{ call.function.arguments | tojson + '}</tool_call>' }}"
    "{% endfor %}{% endfor %}"
)

WEATHER = jobs_pb2.Tool(
    name="weather",
    description="outside",
    parameters_json='{"properties": {"city": {}}}',
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The tags are special tokens, which answers do not show as a rule."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<tool_call>", "</tool_call>"])
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), tokenizer, chat_template=TEMPLATE)


def ask(mode: Any = jobs_pb2.TOOL_MODE_AUTO, **fields: Any) -> jobs_pb2.ChatInput:
    chat = jobs_pb2.ChatInput(tools=[WEATHER], tool_choice=jobs_pb2.ToolChoice(mode=mode), **fields)
    chat.messages.add(role="user", content="How is it?")
    return chat


async def submit(gateway: Gateway, chat: jobs_pb2.ChatInput, **fields: Any) -> None:
    await gateway.send(
        submit=jobs_pb2.SubmitJob(
            handle=1, job=jobs_pb2.Job(id="job-1", model="demo", chat=chat, **fields)
        )
    )


async def answer(executor: FakeTaskExecutor, tokenizer: Tokenizer, text: str) -> int:
    """The text token by token, each in a message of its own, and the end token."""
    handle, _ = await executor.task()
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, 1]
    for index, token_id in enumerate(ids):
        executor.emit(handle, [token_id], index)
    return handle


async def test_calls_in_the_answer_arrive_as_calls(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await submit(gateway, ask())
    _, task = await executor.task()
    prompt = tokenizer.decode(list(task.prompt_token_ids), skip_special_tokens=False)
    shown = (
        '{"name": "weather", "description": "outside", "parameters": {"properties": {"city": {}}}}'
    )
    assert prompt == shown + "user:How is it?"
    assert task.sampling.grammar.WhichOneof("kind") is None

    handle = await answer(executor, tokenizer, f"I look.{CALL}\n{CALL}")
    executor.finish(handle)
    end = await gateway.until_finished(1)
    assert end.reason == types.FINISH_REASON_TOOL_CALLS
    assert gateway.text() == "I look."
    first, second = gateway.calls[1, 0]
    assert (first.name, json.loads(first.arguments)) == ("weather", {"city": "Köln"})
    assert (second.name, second.arguments) == ("weather", first.arguments)
    assert first.id != second.id


async def test_an_answer_without_a_call_is_text(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await submit(gateway, ask())
    handle = await answer(executor, tokenizer, "Just <tool_call>talk")
    executor.finish(handle)
    end = await gateway.until_finished(1)
    assert (gateway.text(), end.reason) == ("Just <tool_call>talk", types.FINISH_REASON_STOP)
    assert not gateway.calls[1, 0]


async def test_one_call_at_most_ends_the_answer_behind_it(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await submit(gateway, ask(single_tool_call=True))
    handle = await answer(executor, tokenizer, f"{CALL}\n{CALL}")
    end = await gateway.until_finished(1)
    assert end.reason == types.FINISH_REASON_TOOL_CALLS
    assert len(gateway.calls[1, 0]) == 1
    await until(lambda: executor.cancelled == [handle], what="the cancelled task")


async def test_tools_that_must_not_be_called_are_not_even_shown(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    await submit(gateway, ask(jobs_pb2.TOOL_MODE_NONE))
    _, task = await executor.task()
    assert "weather" not in tokenizer.decode(list(task.prompt_token_ids))
    handle = await answer(executor, tokenizer, 'x {"name": "weather"}')
    executor.finish(handle)
    await gateway.until_finished(1)
    assert gateway.text() == 'x {"name": "weather"}' and not gateway.calls[1, 0]


async def test_a_forced_call_is_a_grammar(gateway: Gateway, executor: FakeTaskExecutor) -> None:
    await submit(gateway, ask(jobs_pb2.TOOL_MODE_REQUIRED))
    _, task = await executor.task()
    assert task.sampling.grammar.param == "tools"
    assert list(task.sampling.grammar.part_params) == ["tools[0].function.parameters"]
    assert "call)*" in task.sampling.grammar.lark and "weather" in task.sampling.grammar.lark


async def test_earlier_calls_and_their_answers_are_in_the_prompt(
    gateway: Gateway, executor: FakeTaskExecutor, tokenizer: Tokenizer
) -> None:
    chat = ask()
    turn = chat.messages.add(role="assistant")
    turn.tool_calls.add(id="call_1", name="weather", arguments_json='{"city":"Ulm"}')
    chat.messages.add(role="tool", content="rain", tool_call_id="call_1")
    await submit(gateway, chat)
    _, task = await executor.task()
    prompt = tokenizer.decode(list(task.prompt_token_ids), skip_special_tokens=False)
    assert '{"name": "weather", "arguments": {"city": "Ulm"}}' in prompt
    assert prompt.endswith("tool:rain")


JSON_ANSWER = types.SamplingParams(grammar=types.Grammar(json_schema="{}", param="response_format"))


@pytest.mark.parametrize(
    ("chat", "sampling", "param"),
    [
        (ask(jobs_pb2.TOOL_MODE_REQUIRED), JSON_ANSWER, "tool_choice"),
        (ask(jobs_pb2.TOOL_MODE_NAMED), None, "tool_choice.function.name"),
        (ask(template_arguments_json='{"tools": 1}'), None, "chat_template_kwargs.tools"),
        (ask(template_arguments_json="["), None, "chat_template_kwargs"),
        (ask(template_arguments_json="[]"), None, "chat_template_kwargs"),
    ],
)
async def test_what_cannot_be_met_is_refused(
    gateway: Gateway, chat: jobs_pb2.ChatInput, sampling: types.SamplingParams | None, param: str
) -> None:
    await submit(gateway, chat, sampling=sampling)
    error = await gateway.until_refused(1)
    assert (error.code, error.param) == (types.ERROR_CODE_INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("template", "tool_format", "is_served"),
    [
        ("{{ messages[0].content }}", "hermes", False),
        ("{{ messages[0].content }}{{ tools }}", "", False),
        ("{{ messages[0].content }}{{ tools }}", "unheard-of", False),
        ("{{ messages[0].content }}{{ tools }}", "llama3", True),
    ],
)
async def test_tools_need_a_template_that_shows_them_and_a_format_to_read(
    template: str,
    tool_format: str,
    is_served: bool,
    rig: Rig,
    executor: FakeTaskExecutor,
    gateway: Gateway,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    deployment = cluster_pb2.Deployment()
    deployment.CopyFrom(rig.deployment)
    deployment.source = str(write_folder(tmp_path, tokenizer, chat_template=template))
    deployment.tool_format = tool_format
    rig.push(executor, deployments=[deployment])
    await submit(gateway, ask())
    if is_served:
        handle = await answer(executor, tokenizer, '{"name": "weather", "parameters": {}}')
        executor.finish(handle)
        await gateway.until_finished(1)
        assert [call.arguments for call in gateway.calls[1, 0]] == ["{}"]
        return
    error = await gateway.until_refused(1)
    assert (error.param, error.reason) == ("tools", "tools_unsupported")
