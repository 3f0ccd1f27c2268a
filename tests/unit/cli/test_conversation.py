"""The chat client against a server that answers what it is told to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from deepflow.cli.conversation import ChatError, Conversation
from deepflow.cli.main import app


class FakeGateway(ThreadingHTTPServer):
    """Streams the words of `answer`; `status` other than 200 refuses with `answer` as reason."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.answer = "A task executor runs tasks."
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeGateway

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "demo"}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body))
        if self.server.status != 200:
            error = {"error": {"message": self.server.answer}}
            return self._send(self.server.status, json.dumps(error).encode())
        deltas = [{"role": "assistant"}] + [
            {"content": word} for word in self.server.answer.split(" ")
        ]
        events = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
        return self._send(200, "".join(f"data: {e}\n\n" for e in [*events, "[DONE]"]).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    server = FakeGateway()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_one_question_streams_its_answer(gateway: FakeGateway) -> None:
    result = CliRunner().invoke(app, ["chat", "What is it?", "--url", gateway.url])
    assert (result.exit_code, result.stdout) == (0, "Ataskexecutorrunstasks.\n")
    assert gateway.asked[0]["model"] == "demo"
    assert gateway.asked[0]["stream"] is True


def test_a_talk_remembers_what_was_said(gateway: FakeGateway) -> None:
    result = CliRunner().invoke(app, ["chat", "--url", gateway.url], input="one\n\ntwo\n")
    assert result.exit_code == 0
    roles = [message["role"] for message in gateway.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_a_refusal_is_the_gateways_own_sentence(gateway: FakeGateway) -> None:
    gateway.status, gateway.answer = 404, "the model 'x' does not exist"
    result = CliRunner().invoke(app, ["chat", "hi", "--model", "x", "--url", gateway.url])
    assert result.exit_code == 1
    assert "the model 'x' does not exist" in result.stderr


def test_a_failed_answer_does_not_end_the_talk(gateway: FakeGateway) -> None:
    gateway.status, gateway.answer = 503, "nobody is there"
    result = CliRunner().invoke(app, ["chat", "--url", gateway.url], input="one\ntwo\n")
    assert result.exit_code == 0
    assert result.stdout.count("[nobody is there]") == 2
    assert len(gateway.asked[1]["messages"]) == 1


def test_an_error_in_the_stream_is_raised(gateway: FakeGateway) -> None:
    from deepflow.cli.conversation import _pieces

    lines = [
        'data: {"choices": [{"delta": {"content": "a"}}]}',
        'data: {"error": {"message": "b"}}',
    ]
    pieces = _pieces(iter(lines))
    assert next(pieces) == "a"
    with pytest.raises(ChatError, match="b"):
        next(pieces)
    with Conversation(f"{gateway.url}/v1/", None, 5, 0) as conversation:
        assert conversation.model == "demo"
