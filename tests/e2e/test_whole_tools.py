"""Tools through the whole mesh, with the real openai client, on a second model of its stack."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.stack import ANSWER_SECONDS_MAX, Stack, wait_until

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is a task executor?"}
]


TOOL_TEMPLATE = """
{%- if tools %}You may call:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer with <tool_call>
{"name": NAME, "arguments": OBJECT}
</tool_call>
{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{%- if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    },
]


@pytest.fixture(scope="module")
def tool_model(stack: Stack, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "with-tools"
    folder.mkdir()
    for file in demo_folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    stack.cli("deploy", str(folder), "--name", "with-tools")
    body = {"model": "with-tools", "prompt": "hi", "max_tokens": 1}
    url = f"{stack.url}/v1/completions"
    wait_until(
        lambda: httpx.post(url, json=body, timeout=ANSWER_SECONDS_MAX).status_code == 200,
        "everybody knows the model",
    )
    yield "with-tools"
    stack.cli("undeploy", "with-tools")


@pytest.fixture()
def ask_tools(client: openai.OpenAI, tool_model: str) -> Iterator[Any]:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model=tool_model,
            messages=[{"role": "user", "content": "How is the weather?"}],
            tools=TOOLS,
            temperature=1,
            max_tokens=200,
            **options,
        )

    yield ask


def check_call(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["city"] in ("Rome", "Oslo") and arguments["days"] in (1, 2, 3)
    else:
        assert call.function.name == "add"
        assert arguments["a"] in (1, 2) and arguments["b"] in (3, 4)


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_is_made(ask_tools: Any, seed: int) -> None:
    reply = ask_tools(tool_choice="required", parallel_tool_calls=False, seed=seed)
    message = reply.choices[0].message
    assert len(message.tool_calls) == 1
    assert message.content is None
    assert reply.choices[0].finish_reason == "tool_calls"
    check_call(message.tool_calls[0])


def test_a_named_tool_is_called_and_streams_to_the_same(ask_tools: Any) -> None:
    options = {
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
        "seed": 7,
    }
    whole = ask_tools(**options).choices[0].message.tool_calls[0]
    assert whole.function.name == "add"
    check_call(whole)
    name, arguments, ids = "", "", set()
    for chunk in ask_tools(**options, stream=True):
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or []:
                assert delta.index == 0
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
                ids |= {delta.id} - {None}
    assert (name, arguments) == ("add", whole.function.arguments)
    assert len(ids) == 1


def test_a_conversation_with_tool_answers_goes_on(client: openai.OpenAI, tool_model: str) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1, "b": 3}'},
    }
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 3?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]
    reply = client.chat.completions.create(
        model=tool_model, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=5
    )
    assert reply.choices[0].message.tool_calls is None
    assert reply.usage is not None and reply.usage.prompt_tokens > 50


def test_a_model_without_tools_says_so(http: httpx.Client, model: str) -> None:
    body = {"model": model, "messages": QUESTION, "tools": TOOLS}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == "tools"
