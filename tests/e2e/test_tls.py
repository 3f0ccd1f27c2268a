"""A whole stack over TLS: made by one command, started with one flag, asked as its users would."""

import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from deepflow.local.data_dir import DataDir
from deepflow.local.tls_folder import TlsFolder
from tests.certificates import make_folder, replace, serial_of
from tests.stack import (
    ANSWER_SECONDS_MAX,
    COMMAND_SECONDS_MAX,
    Stack,
    running_stack,
    wait_until,
)

MODEL = "demo"


def test_a_stack_over_tls(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    command = [sys.executable, "-m", "deepflow.cli.main", "certificates", "create", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_SECONDS_MAX)
    data = tmp_path / "data"
    options = ("--tls", str(folder), "--liveness-seconds", "3", "--device", "emulated:zero")
    with running_stack(data, *options) as stack:
        url = f"https://127.0.0.1:{stack.port}"
        assert stack.status()["gateways"] == [url]
        trusted = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        _answers_the_openai_client(url, trusted)
        _refuses_strangers(stack, url)
        _answers_commands(stack)
        _shows_what_was_renewed(stack, tmp_path)
        # The probes of the supervisor got through, also to the renewed one.
        assert all(row["restarts"] == 0 for row in stack.processes())


def _answers_the_openai_client(url: str, trusted: ssl.SSLContext) -> None:
    with (
        openai.DefaultHttpxClient(verify=trusted) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http) as client,
    ):
        model = client.models.list().data[0].id
        stream = client.completions.create(model=model, prompt="Hello", max_tokens=8, stream=True)
        assert sum(len(chunk.choices) for chunk in stream) > 1


def _refuses_strangers(stack: Stack, url: str) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/health", timeout=ANSWER_SECONDS_MAX)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{stack.url}/health", timeout=ANSWER_SECONDS_MAX)
    token = DataDir(stack.data_dir).read_secrets().cluster_token
    asked = 0
    stack.wait_until_all_are_members()
    for member in stack.members():
        if member["service"] == "gateway":
            continue
        with grpc.insecure_channel(member["address"]) as channel:
            ask: Any = channel.unary_unary("/deepflow.v1.RecordStoreService/Get")
            with pytest.raises(grpc.RpcError) as refusal:
                metadata = (("authorization", f"Bearer {token}"),)
                ask(b"", metadata=metadata, timeout=ANSWER_SECONDS_MAX)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        asked += 1
    assert asked >= 4


def _answers_commands(stack: Stack) -> None:
    asked = stack.cli("chat", "Hello", "--max-tokens", "4")
    assert asked.returncode == 0
    assert MODEL in stack.cli("models", "--json").stdout
    findings = json.loads(stack.cli("doctor", "--json", check=False).stdout)["findings"]
    levels = [it["level"] for it in findings if it["about"] == "certificate"]
    assert levels == ["ok"] * 3
    assert stack.cli("keys", "list").returncode == 0  # the kv_store's own port, too


def _shows_what_was_renewed(stack: Stack, tmp_path: Path) -> None:
    renewed = make_folder(tmp_path / "renewed")
    public = TlsFolder(tmp_path / "tls").public
    pid = stack.pid_of("gateway")
    replace(public, renewed.public)
    trusted = ssl.create_default_context(cafile=str(renewed.ca))

    def is_shown() -> bool:
        try:
            answer = httpx.get(
                f"https://127.0.0.1:{stack.port}/health",
                verify=trusted,
                timeout=ANSWER_SECONDS_MAX,
            )
        except httpx.ConnectError:
            return False
        return answer.status_code == 200

    wait_until(is_shown, "the renewed certificate is shown")
    assert serial_of(public.certificate) == serial_of(renewed.public.certificate)
    assert stack.pid_of("gateway") == pid
    assert stack.cli("chat", "Hello", "--max-tokens", "4").returncode == 0
