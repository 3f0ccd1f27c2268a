"""Everything that a client can send wrong: a 4xx in OpenAI's shape that names the field."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.gateway_support import (
    MODEL,
    FakeJobExecutor,
    GatewayStand,
    client,
    gateway_stand,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# What is promised is 100 ms; a loaded test machine gets some more.
SECONDS_MAX = 1.0


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


def part(value: Any) -> dict[str, Any]:
    return message(content=[value])


def call(**fields: Any) -> dict[str, Any]:
    made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {**made, **fields}


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def chosen(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def named_schema(**fields: Any) -> dict[str, Any]:
    schema = {"name": "answer", "schema": {"type": "object"}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


# More bytes than one field that binds the answer may have.
BIG = {"description": "x" * 128 * 1024}

CHAT_CASES: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"model": "x" * 300}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (message(role="robot"), "messages[0].role"),
    (message(role=5), "messages[0].role"),
    (message(role="function"), "messages[0].role"),
    (message(role="tool"), "messages[0].tool_call_id"),
    (message(role="tool", tool_call_id=5), "messages[0].tool_call_id"),
    (message(role="tool", tool_call_id="x" * 257), "messages[0].tool_call_id"),
    (message(role="tool", tool_call_id="1", content=None), "messages[0].content"),
    (message(role="assistant", content=None), "messages[0].content"),
    (message(role="assistant", content=None, tool_calls=[]), "messages[0].content"),
    (message(role="assistant", refusal=5), "messages[0].refusal"),
    (message(refusal="no"), "messages[0].refusal"),
    (message(function_call={"name": "f"}), "messages[0].function_call"),
    (message(content=5), "messages[0].content"),
    (message(content=None), "messages[0].content"),
    (message(content=[]), "messages[0].content"),
    (message(name=""), "messages[0].name"),
    (message(tool_calls=[call()]), "messages[0].tool_calls"),
    (message(role="assistant", tool_calls={}), "messages[0].tool_calls"),
    (message(role="assistant", tool_calls=[call()] * 129), "messages[0].tool_calls"),
    (message(role="assistant", tool_calls=["f"]), "messages[0].tool_calls[0]"),
    (message(role="assistant", tool_calls=[{"id": "1"}]), "messages[0].tool_calls[0].type"),
    (message(role="assistant", tool_calls=[call(type="x")]), "messages[0].tool_calls[0].type"),
    (message(role="assistant", tool_calls=[call(id=None)]), "messages[0].tool_calls[0].id"),
    (message(role="assistant", tool_calls=[call(id="")]), "messages[0].tool_calls[0].id"),
    (
        message(role="assistant", tool_calls=[call(), call(function={"name": "f"})]),
        "messages[0].tool_calls[1].function.arguments",
    ),
    (
        message(role="assistant", tool_calls=[call(function={"name": "f", "arguments": {}})]),
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        message(role="assistant", tool_calls=[call(function={"name": "f g", "arguments": ""})]),
        "messages[0].tool_calls[0].function.name",
    ),
    (message(tool_call_id="1"), "messages[0].tool_call_id"),
    (message(contents="x"), "messages[0].contents"),
    (part("hi"), "messages[0].content[0]"),
    (part({"text": "hi"}), "messages[0].content[0].type"),
    (part({"type": "text"}), "messages[0].content[0].text"),
    (part({"type": "text", "text": 5}), "messages[0].content[0].text"),
    (part({"type": "image_url", "image_url": {}}), "messages[0].content[0].type"),
    (part({"type": "text", "text": "hi", "file": {}}), "messages[0].content[0].file"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": []}, "top_p"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ["a", 5]}, "stop[1]"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": "x" * 300}, "stop"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**30}, "n"),
    ({"n": "2"}, "n"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"user": 5}, "user"),
    ({"ignore_eos": "yes"}, "ignore_eos"),
    ({"return_token_ids": 1}, "return_token_ids"),
    (part({"type": "refusal", "refusal": "no"}), "messages[0].content[0].type"),
    ({"tools": {}}, "tools"),
    ({"tools": [tool()] * 129}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": 5}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": []}]}, "tools[0].function"),
    ({"tools": [tool(name=None)]}, "tools[0].function.name"),
    ({"tools": [tool(name="")]}, "tools[0].function.name"),
    ({"tools": [tool(name="no spaces")]}, "tools[0].function.name"),
    ({"tools": [tool(name="x" * 65)]}, "tools[0].function.name"),
    ({"tools": [tool(name="f"), tool(name="g"), tool(name="f")]}, "tools[2].function.name"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters=BIG)]}, "tools[0].function.parameters"),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
    ({"tools": [tool(returns={})]}, "tools[0].function.returns"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": chosen("f")}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [tool()], "tool_choice": chosen("g")}, "tool_choice.function.name"),
    ({"tools": [tool()], "tool_choice": chosen(5)}, "tool_choice.function.name"),
    (
        {"tools": [tool()], "tool_choice": "required", "guided_regex": "a"},
        "tool_choice",
    ),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"x": "y" * 20_000}}, "chat_template_kwargs"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (named_schema(name=None), "response_format.json_schema.name"),
    (named_schema(name="a b"), "response_format.json_schema.name"),
    (named_schema(schema=None), "response_format.json_schema.schema"),
    (named_schema(schema="{}"), "response_format.json_schema.schema"),
    (named_schema(schema=BIG), "response_format.json_schema.schema"),
    (named_schema(strict=1), "response_format.json_schema.strict"),
    (named_schema(description=[]), "response_format.json_schema.description"),
    (named_schema(more=1), "response_format.json_schema.more"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"max_completion_tokens": 0, "echo": False}, "max_completion_tokens"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"store": True}, "store"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"prompt": "hi"}, "prompt"),
    ({"max_token": 5}, "max_token"),
    ({"x" * 5000: 1}, "x" * 61 + "..."),
]


def each(name: str, *bad: Any) -> list[tuple[dict[str, Any], str]]:
    """The same field with one bad value after another."""
    return [({name: value}, name) for value in bad]


SHARED_CASES: list[tuple[dict[str, Any], str]] = [
    *each("presence_penalty", -2.1, 2.1, "0", True, [], 10**400),
    *each("frequency_penalty", -2.1, 2.1, "0", True, [], 10**400),
    *each("repetition_penalty", 0, -1, 2.1, "1", False),
    *each("min_p", -0.1, 1.1, "0", True),
    *each("top_k", -2, 1.5, "5", True, 2**31, 10**30),
    *each("min_tokens", -1, 1.5, "5", 2**31),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    *each("logit_bias", [], "x", 5),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"05": 1}}, "logit_bias.05"),
    ({"logit_bias": {"٥": 1}}, "logit_bias.٥"),
    ({"logit_bias": {"99999999999": 1}}, "logit_bias.99999999999"),
    ({"logit_bias": {"4294967296": 1}}, "logit_bias.4294967296"),
    ({"logit_bias": {"99": 1, "100": 1}}, "logit_bias.100"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"logit_bias": {"5": None}}, "logit_bias.5"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1, True]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [99, 100]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
    *each("skip_special_tokens", 0, "no"),
    *each("prompt_logprobs", -1, 21, 1.0, True, "1"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"guided_json": 5}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_json": '{"a":' * 100 + "1" + "}" * 100}, "guided_json"),
    ({"guided_json": BIG}, "guided_json"),
    ({"guided_json": json.dumps(BIG)}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": {}}, "guided_regex"),
    ({"guided_regex": "a" * (128 * 1024 + 1)}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"guided_choice": ["a", 5]}, "guided_choice[1]"),
    ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
    ({"guided_choice": ["a"] * 1025}, "guided_choice"),
    ({"guided_choice": ["a" * 1024] * 129}, "guided_choice"),
    ({"guided_grammar": "root ::= x"}, "guided_grammar"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json"),
    ({"structured_outputs": []}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice[1]"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "structured_outputs"),
]

COMPLETION_CASES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [[1], "a"]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, True]}, "prompt[1]"),
    ({"prompt": [1, 2.0]}, "prompt[1]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [0, 100]}, "prompt[1]"),
    ({"prompt": [1, 10**30]}, "prompt[1]"),
    ({"prompt": [[1], [2, 100]]}, "prompt[1][1]"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a"] * 64, "n": 3}, "n"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 3, "n": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"echo": 1}, "echo"),
    ({"suffix": "x"}, "suffix"),
    *each("logprobs", -1, 21, True, 1.5, "1"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 0, "echo": False}, "max_tokens"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"tools": []}, "tools"),
    ({"messages": []}, "messages"),
]

RAW_CASES: list[tuple[bytes, dict[str, str], int, str | None]] = [
    (b"", {}, 400, None),
    (b"{", {}, 400, None),
    (b"[]", {}, 400, None),
    (b'{"model": NaN}', {}, 400, "model"),
    (b'{"temperature": Infinity}', {}, 400, "temperature"),
    (b'{"logit_bias": {"5": NaN}}', {}, 400, "logit_bias.5"),
    (b'{"presence_penalty": -Infinity}', {}, 400, "presence_penalty"),
    (b'{"guided_json": {"minimum": 1e999}}', {}, 400, "guided_json.minimum"),
    (b'{"tools": [{"function": {"strict": NaN}}]}', {}, 400, "tools[0].function.strict"),
    (b'{"temperature": 1e999}', {}, 400, "temperature"),
    (b'{"model": "\xff"}', {}, 400, None),
    (b'{"model": "\\udc00"}', {}, 400, None),
    (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", {}, 400, None),
    (b'{"a":' * 100_000, {}, 400, None),
    (b"x" * (4 * 1024 * 1024 + 1), {}, 413, None),
    (b"{}", {"content-type": "text/plain"}, 400, "content-type"),
    (b"{}", {"x-request-id": "no spaces"}, 400, "x-request-id"),
    (b"{}", {"x-request-id": "x" * 129}, 400, "x-request-id"),
]


@pytest.fixture
async def stand() -> AsyncIterator[GatewayStand]:
    async with gateway_stand(FakeJobExecutor()) as stand:
        yield stand


def check(response: httpx.Response, status: int, param: str | None) -> None:
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param, error["message"]
    assert error["type"] == "invalid_request_error"
    assert 10 < len(error["message"]) < 300
    assert response.headers["x-request-id"]


async def refused(http: httpx.AsyncClient, path: str, document: dict[str, Any], param: str) -> None:
    started = time.monotonic()
    response = await http.post(path, json=document)
    check(response, 400, param)
    assert time.monotonic() - started < SECONDS_MAX


async def works(http: httpx.AsyncClient) -> None:
    response = await http.post(COMPLETIONS, json={"model": MODEL, "prompt": "hi"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "base", "cases"),
    [
        (CHAT, message(), [*CHAT_CASES, *SHARED_CASES]),
        (COMPLETIONS, {"prompt": "hi"}, [*COMPLETION_CASES, *SHARED_CASES]),
    ],
    ids=["chat", "completions"],
)
async def test_every_bad_field_is_named(
    stand: GatewayStand, path: str, base: dict[str, Any], cases: list[tuple[dict[str, Any], str]]
) -> None:
    async with client(stand) as http:
        for change, param in cases:
            await refused(http, path, {"model": MODEL, **base, **change}, param)
        await works(http)
    assert stand.executor.jobs.qsize() == 1, "no bad request reached the job executor"


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        ("/tokenize", {"model": MODEL}, "prompt"),
        ("/tokenize", {"prompt": "hi"}, "model"),
        ("/tokenize", {"model": MODEL, "prompt": 5}, "prompt"),
        ("/tokenize", {"model": MODEL, "prompt": "hi", **message()}, "prompt"),
        ("/tokenize", {"model": MODEL, "prompt": "hi", "tools": [tool()]}, "tools"),
        ("/tokenize", {"model": MODEL, **message(role="robot")}, "messages[0].role"),
        ("/tokenize", {"model": MODEL, "prompt": "hi", "add_special_tokens": 1}, None),
        ("/tokenize", {"model": MODEL, "prompt": "hi", "return_token_strs": "x"}, None),
        ("/tokenize", {"model": MODEL, "prompt": "hi", "add_generation_prompt": False}, None),
        ("/detokenize", {"model": MODEL}, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": "x"}, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": [1] * (1024 * 1024 + 1)}, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": [1, "x"]}, "tokens[1]"),
        ("/detokenize", {"model": MODEL, "tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"model": MODEL, "tokens": [1, 100]}, "tokens[1]"),
        ("/detokenize", {"model": MODEL, "tokens": [1, 10**30]}, "tokens[1]"),
    ],
)
async def test_bad_calls_of_the_tokenizer(
    stand: GatewayStand, path: str, document: dict[str, Any], param: str | None
) -> None:
    async with client(stand) as http:
        # The field that the case adds last is at fault where it names none.
        await refused(http, path, document, param or list(document)[-1])
        other = {"prompt": "x"} if path == "/tokenize" else {"tokens": [1]}
        response = await http.post(path, json={"model": "other", **other})
        assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    assert stand.executor.tokenize_requests == []


@pytest.mark.parametrize(("body", "headers", "status", "param"), RAW_CASES)
async def test_bad_bodies_and_headers(
    stand: GatewayStand, body: bytes, headers: dict[str, str], status: int, param: str | None
) -> None:
    async with client(stand) as http:
        headers = {"content-type": "application/json", **headers}
        check(await http.post(CHAT, content=body, headers=headers), status, param)
        await works(http)


async def test_a_chunked_body_is_counted_while_it_comes(stand: GatewayStand) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    async with client(stand) as http:
        headers = {"content-type": "application/json"}
        check(await http.post(CHAT, content=endless(), headers=headers), 413, None)
        await works(http)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/", 404, "not_found_error"),
        ("GET", "/v1", 404, "not_found_error"),
        ("GET", "/v1/models/", 404, "not_found_error"),
        ("GET", "/v1/models/other", 404, "not_found_error"),
        ("POST", "/v1/images", 404, "not_found_error"),
        ("GET", CHAT, 405, "invalid_request_error"),
        ("DELETE", "/v1/models", 405, "invalid_request_error"),
        ("OPTIONS", COMPLETIONS, 405, "invalid_request_error"),
    ],
)
async def test_wrong_routes_and_methods(
    stand: GatewayStand, method: str, path: str, status: int, kind: str
) -> None:
    async with client(stand) as http:
        response = await http.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
        assert ("allow" in response.headers) == (status == 405)


async def test_what_can_be_read_has_a_head(stand: GatewayStand) -> None:
    async with client(stand) as http:
        whole, head = await http.get("/v1/models"), await http.head("/v1/models")
    assert head.status_code == 200
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.content == b""


async def test_an_unknown_model_is_404(stand: GatewayStand) -> None:
    async with client(stand) as http:
        response = await http.post(CHAT, json={"model": "other", **message()})
        assert response.status_code == 404
        assert response.json()["error"]["param"] == "model"


async def speak(stand: GatewayStand, *pieces: bytes) -> bytes:
    """Raw bytes to the port; what comes back until the gateway hangs up."""
    host, port = stand.gateway.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((b"this is not HTTP\r\n\r\n",), b"400"),
        ((b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000,), b"431"),
        ((b"GET /health HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",), b"431"),
        ((b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 8000), b"431"),
    ],
)
async def test_bad_http_is_answered_in_shape(
    stand: GatewayStand, pieces: tuple[bytes, ...], status: bytes
) -> None:
    answer = await speak(stand, *pieces)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"type":"invalid_request_error"' in answer
    assert b"retry-after" not in answer


async def test_a_request_that_never_ends_is_hung_up_on() -> None:
    async with gateway_stand(FakeJobExecutor(), request_read_seconds_max=0.1) as stand:
        with contextlib.suppress(ConnectionResetError):
            assert await speak(stand, b"POST /v1/completions HTTP/1.1\r\n") == b""
