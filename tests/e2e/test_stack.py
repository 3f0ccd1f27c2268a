"""What a person does with a running stack, and what must hold of it."""

import contextlib
import re
import socket
import subprocess
import sys

import httpx
import openai
import psutil

from tests.stack import ANSWER_SECONDS_MAX, COMMAND_SECONDS_MAX, Stack, wait_until

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def test_status_shows_every_process(stack: Stack) -> None:
    services = {row["service"] for row in stack.processes()}
    assert services >= {
        "gateway",
        "job_executor",
        "task_executor",
        "cluster_manager",
        "kv_store",
        "nats",
        "redis",
    }
    text = stack.cli("status").stdout
    assert all(row["name"] in text for row in stack.processes())
    assert "ready" in text


def test_a_second_up_says_that_one_runs(stack: Stack) -> None:
    again = stack.cli("up", check=False)
    assert again.returncode != 0
    assert str(stack.process.pid) in again.stdout + again.stderr
    assert stack.url in again.stdout + again.stderr


def test_a_busy_port_is_named_with_the_way_out(stack: Stack, tmp_path: object) -> None:
    command = [sys.executable, "-m", "deepflow.cli.main", "up", "--port", str(stack.port)]
    command += ["--data-dir", f"{tmp_path}/other"]
    reply = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False
    )
    assert reply.returncode != 0
    assert str(stack.port) in reply.stdout + reply.stderr
    assert "--port" in reply.stdout + reply.stderr


def test_chat_streams_in_the_terminal(stack: Stack) -> None:
    reply = stack.cli("chat", "What is a task executor?")
    assert "task executor" in reply.stdout.lower()


def test_logs_are_structured_and_carry_the_request_id(stack: Stack, model: str) -> None:
    request_id = "trace-me-123"
    body = {"model": model, "prompt": "hi", "max_tokens": 1}
    reply = httpx.post(
        f"{stack.url}/v1/completions",
        json=body,
        headers={"x-request-id": request_id},
        timeout=ANSWER_SECONDS_MAX,
    )
    assert reply.headers["x-request-id"] == request_id
    logs = stack.data_dir / "logs"
    wait_until(
        lambda: any(request_id in path.read_text() for path in logs.glob("*gateway*.log")),
        "the request shows in the gateway's log",
    )


def test_every_service_offers_metrics(stack: Stack) -> None:
    assert "deepflow_" in httpx.get(f"{stack.url}/metrics", timeout=ANSWER_SECONDS_MAX).text
    stack.wait_until_all_are_members()
    addresses = {row["name"]: row["health_address"] for row in stack.members()}
    assert len(addresses) >= 5
    for name, address in addresses.items():
        text = httpx.get(f"http://{address}/metrics", timeout=ANSWER_SECONDS_MAX).text
        assert re.search(r"^deepflow_", text, re.M), name


def test_nothing_listens_beyond_loopback(stack: Stack) -> None:
    for process in stack.family():
        with contextlib.suppress(psutil.NoSuchProcess):  # a compiler that has just ended
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in LOOPBACK, process


def test_no_grpc_port_answers_without_the_token(stack: Stack) -> None:
    import grpc

    from deepflow.v1 import cluster_pb2
    from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub

    stack.wait_until_all_are_members()
    addresses = [row["address"] for row in stack.members() if row["service"] != "gateway"]
    assert len(addresses) >= 4
    for address in addresses:
        with grpc.insecure_channel(address) as channel:
            try:
                ClusterManagerServiceStub(channel).GetView(
                    cluster_pb2.GetViewRequest(), timeout=ANSWER_SECONDS_MAX
                )
                raise AssertionError(f"{address} answered")
            except grpc.RpcError as error:
                assert error.code() in (
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.UNIMPLEMENTED,
                )


def test_a_client_that_leaves_frees_its_work(stack: Stack, model: str) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    payload = httpx.Request("POST", stack.url, json=body).content
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.sendall(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
        assert b"200" in connection.recv(100)

    def is_idle() -> bool:
        text = stack.metrics("task_executor")
        return "deepflow_task_executor_sequences_running 0.0" in text

    wait_until(is_idle, "the engine runs nothing")


def test_async_and_sync_clients_share_the_stack(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
