"""Everything that a client can send wrong: a 4xx in OpenAI's shape that names the field."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.bad_gateway_bodies import (
    CHAT_CASES,
    COMPLETION_CASES,
    RAW_CASES,
    SHARED_CASES,
    message,
    tool,
)
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    MODEL,
    FakeJobExecutor,
    GatewayStand,
    client,
    gateway_stand,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


# Of computing, client and gateway together. What is promised is 100 ms; a slow machine gets more.
SECONDS_MAX = 2.0


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
    began = time.thread_time()
    response = await http.post(path, json=document)
    check(response, 400, param)
    assert time.thread_time() - began < SECONDS_MAX


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
        async with asyncio.timeout(DEADLINE_SECONDS):
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
