"""What a client can do wrong to the whole mesh, and that nobody else feels it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.stack import ANSWER_SECONDS_MAX, Stack, wait_until

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Counts = dict[str, float]
LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 900, "ignore_eos": True, "n": 2}

# Refused behind the gateway, by whoever knows the model.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"prompt": "word " * 100_000}, "prompt"),
    (COMPLETIONS, {"prompt": [5] * 100_000}, "prompt"),
    (COMPLETIONS, {"prompt": ["fine", "word " * 2000]}, "prompt"),
    (COMPLETIONS, {"prompt": [10**6]}, "prompt[0]"),
    (COMPLETIONS, {"prompt": [[1], [2**32 - 1]]}, "prompt[1][0]"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": "x", "n": 10**9}, "n"),
    (COMPLETIONS, {"prompt": "x", "temperature": "warm"}, "temperature"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 100_000}]}, "messages"),
    (CHAT, {"messages": []}, "messages"),
]


@pytest.fixture(autouse=True)
def the_next_request_works(stack: Stack) -> Iterator[None]:
    yield
    assert stack.answers()


@pytest.fixture(scope="module")
def counts(stack: Stack) -> Callable[[], Counts]:
    """What the task executor counts now, by name."""
    row = next(row for row in stack.members() if row["service"] == "task_executor")
    url, prefix = f"http://{row['health_address']}/metrics", "deepflow_task_executor_"

    def look() -> Counts:
        lines = httpx.get(url, timeout=ANSWER_SECONDS_MAX).text.splitlines()
        samples = [line.rpartition(" ") for line in lines if line.startswith(prefix)]
        return {name.removeprefix(prefix): float(value) for name, _, value in samples}

    return look


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_bad_requests_are_refused_by_field_before_the_engine_works(
    http: httpx.Client,
    model: str,
    counts: Callable[[], Counts],
    path: str,
    body: dict[str, Any],
    param: str,
    stream: bool,
) -> None:
    wait_until(lambda: _sequences(counts()) == 0, "the engine has nothing to do")
    steps = counts()["steps_total"]
    reply = http.post(path, json={"model": model, "stream": stream, **body})
    assert counts()["steps_total"] == steps
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_stop_strings_cut_exactly_wherever_the_tokens_end(
    client: openai.OpenAI, model: str
) -> None:
    def ask(**options: Any) -> Any:
        options |= {"temperature": 2.0, "seed": 5, "max_tokens": 60}
        reply = client.completions.create(model=model, prompt="你好 🎉", **options)
        return reply.choices[0]

    whole = ask().text
    for start in range(0, len(whole) - 3, 5):
        stop = whole[start : start + 3]
        cut = ask(stop=[stop, "never in there"])
        assert cut.text == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"


def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    stack: Stack, model: str, counts: Callable[[], Counts]
) -> None:
    for index in range(60):
        whole = _request({"model": model, "stream": index % 2 == 0, **LONG})
        cut = (None, 1, 10, 90, len(whole) - 1, None)[index % 6]
        with socket.create_connection(("127.0.0.1", stack.port)) as connection:
            connection.sendall(whole[:cut])
            if cut is None and index % 4 == 0:
                connection.recv(100)
            if index % 3 == 0:  # a reset, not an orderly end
                linger = b"\x01\0\0\0\0\0\0\0"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_until(lambda: _sequences(counts()) == 0, "the engine has nothing to do")


def test_a_client_that_reads_slowly_delays_nobody_and_loses_nothing(
    stack: Stack, model: str, counts: Callable[[], Counts]
) -> None:
    body = {"model": model, "stream": True, "return_token_ids": True, **LONG}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", stack.port))
        slow.sendall(_request(body))
        assert stack.answers()
        wait_until(lambda: _sequences(counts()) == 0, "the engine waits for no client")
        answer = b""
        with contextlib.suppress(TimeoutError):
            slow.settimeout(ANSWER_SECONDS_MAX)
            while not answer.endswith(b"0\r\n\r\n"):
                answer += slow.recv(1 << 20)
    assert answer.count(b'"finish_reason":"length"') == 2
    assert answer.count(b'"token_ids":[') == 2 * LONG["max_tokens"]


def test_pipelined_requests_are_answered_in_order(stack: Stack, model: str) -> None:
    good = _request({"model": model, "prompt": "hi", "max_tokens": 1})
    bad = _request({"model": model, "prompt": "hi", "max_tokens": 0})
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        connection.sendall(good + bad + good + last)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    statuses = [line.split(b" ", 1)[0] for line in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200", b"200"]


async def test_bad_requests_between_many_streams_harm_none(stack: Stack, model: str) -> None:
    body = {"model": model, "prompt": "hi", "temperature": 0, "max_tokens": 16, "ignore_eos": True}
    limits = httpx.Limits(max_connections=120)
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, limits=limits) as http:

        async def status(index: int) -> tuple[int, str]:
            wrong = {"prompt": [10**6]} if index % 2 else {}
            reply = await http.post(COMPLETIONS, json={**body, **wrong})
            document = reply.json()
            return reply.status_code, document["choices"][0]["text"] if not wrong else ""

        answers = await asyncio.gather(*map(status, range(120)))
    assert {code for code, _ in answers[1::2]} == {400}
    assert len(set(answers[::2])) == 1


def _request(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def _sequences(counts: Counts) -> float:
    """What the engine runs or keeps waiting."""
    return counts["sequences_running"] + counts["sequences_waiting"]
