"""Tools made to hurt a model that may call them: through its template, and as a language."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.bad_requests import CHAT, FUNCTION, Bad
from tests.e2e.bombs import BAD_OPTIONS, BAD_SCHEMAS, HARD_SCHEMAS
from tests.stack import ANSWER_SECONDS_MAX, Stack, wait_until
from tools.bad_input_pack import Answer, good_client, send_all

TEMPLATE = """
{%- for tool in tools or [] %}{{ tool | tojson(indent=indent | default(none)) }}{% endfor %}
{%- if tools %}<tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>{% endif %}
{%- for name, value in (named | default({})) | dictsort %}{{ name }}{% endfor %}
{%- for i in range(rounds | default(1)) %}{% for j in range(rounds | default(1)) %}{% endfor %}
{%- endfor %}
{{- ' ' * (width | default(0)) }}
{{- 'a' | center(centred | default(1)) }}{{ 'a'.ljust(filled | default(1)) }}
{{- '%*d' % (digits | default(1), 1) }}{{ 'a\nb' | indent(deep | default(1)) }}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

ARGUMENTS_PARAM = "chat_template_kwargs"
ARGUMENTS: list[dict[str, Any]] = [
    {"rounds": 10**9},
    {"rounds": 10**30},
    {"rounds": "many"},
    {"width": 10**12},
    {"range": 5},
    {"named": 5},
    {"named": [[[]]]},
    {"indent": []},
    {"indent": 10**9},
    {"centred": 10**12},
    {"filled": 10**12},
    {"digits": 10**12},
    {"deep": 10**12},
]


@pytest.fixture(scope="module")
def tool_model(
    stack: Stack, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models") / "bombed"
    folder.mkdir()
    for file in demo_folder.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    stack.cli("deploy", str(folder), "--name", "bombed")
    body = {"model": "bombed", "prompt": "hi", "max_tokens": 1}
    url = f"{stack.url}/v1/completions"
    wait_until(
        lambda: httpx.post(url, json=body, timeout=ANSWER_SECONDS_MAX).status_code == 200,
        "everybody knows the model",
    )
    yield "bombed"
    stack.cli("undeploy", "bombed")


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=ANSWER_SECONDS_MAX) as api:
        yield api


async def answers_of(
    api: httpx.AsyncClient, model: str, good_model: str, bads: list[Bad]
) -> list[Answer]:
    async with good_client(api, good_model) as good:
        answers = await send_all(api, model, bads, streams=(True,))
    assert good.is_unharmed, good.wrong
    return answers


def forced(schema: dict[str, Any]) -> Bad:
    """A tool whose one argument is such a value must be called."""
    names = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    value = {key: part for key, part in schema.items() if key != "$defs"}
    parameters = {"type": "object", "properties": {"x": value}, "required": ["x"], **names}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return Bad(CHAT, {"tools": [tool], "tool_choice": "required", "max_tokens": 4}, "tools")


def test_the_model_takes_good_tools(stack: Stack, tool_model: str) -> None:
    bad = forced({"type": "object"})
    reply = httpx.post(
        stack.url + CHAT,
        content=bad.body(tool_model, stream=False),
        headers={"content-type": "application/json"},
        timeout=ANSWER_SECONDS_MAX,
    )
    assert reply.status_code == 200, reply.text


async def test_bad_schemas_of_forced_tools_are_refused(
    api: httpx.AsyncClient, model: str, tool_model: str
) -> None:
    bads = [forced(schema) for schema in BAD_SCHEMAS.values()]
    for answer in await answers_of(api, tool_model, model, bads):
        # What is too large for the wire or the prompt is told as that, and what is too much to
        # compile as all tools together.
        params = ("tools", "tools[0].function.parameters", "messages")
        fine = answer.status == 400 and answer.param in params and not answer.is_stream
        assert fine, (str(answer.bad.change)[:200], answer.status, answer.text[:300])


async def test_hard_schemas_of_forced_tools_are_followed_or_refused(
    api: httpx.AsyncClient, model: str, tool_model: str
) -> None:
    bads = [forced(schema) for schema in (HARD_SCHEMAS | BAD_OPTIONS).values()]
    for answer in await answers_of(api, tool_model, model, bads):
        fine = answer.is_answered or (answer.status == 400 and not answer.is_stream)
        assert fine, (str(answer.bad.change)[:200], answer.status, answer.text[:300])


async def test_arguments_that_make_the_template_fail_are_the_clients_fault(
    api: httpx.AsyncClient, model: str, tool_model: str
) -> None:
    bads = [
        Bad(CHAT, {"tools": [FUNCTION], "chat_template_kwargs": arguments}, ARGUMENTS_PARAM)
        for arguments in ARGUMENTS
    ]
    for answer in await answers_of(api, tool_model, model, bads):
        assert answer.is_refused, (answer.bad.change, answer.status, answer.text)
