"""Everything that a client can send wrong: a 4xx in OpenAI's shape that names the field."""

import asyncio
import contextlib
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
    (message(role="tool"), "messages[0].role"),
    (message(content=5), "messages[0].content"),
    (message(content=None), "messages[0].content"),
    (message(content=[]), "messages[0].content"),
    (message(name=""), "messages[0].name"),
    (message(tool_calls=[{"id": "1"}]), "messages[0].tool_calls"),
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
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"store": True}, "store"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": "0"}, "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"prompt": "hi"}, "prompt"),
    ({"max_token": 5}, "max_token"),
    ({"x" * 5000: 1}, "x" * 61 + "..."),
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
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": 0}, "logprobs"),
    ({"messages": []}, "messages"),
]

RAW_CASES: list[tuple[bytes, dict[str, str], int, str | None]] = [
    (b"", {}, 400, None),
    (b"{", {}, 400, None),
    (b"[]", {}, 400, None),
    (b'{"model": NaN}', {}, 400, "model"),
    (b'{"temperature": Infinity}', {}, 400, "temperature"),
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
        (CHAT, message(), CHAT_CASES),
        (COMPLETIONS, {"prompt": "hi"}, COMPLETION_CASES),
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
        ("POST", "/v1/embeddings", 404, "not_found_error"),
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
