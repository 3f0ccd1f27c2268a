"""`deepflow up` where it cannot come up, and where it is stopped on its way."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepflow.demo import MODEL_DIR
from deepflow.local.data_dir import DataDir
from tests.servers import free_port

UP_SECONDS_MAX = 150
WEIGHTS = (MODEL_DIR / "model.safetensors").read_bytes()


@contextlib.contextmanager
def up(data_dir: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "deepflow.cli.main", "up", "--data-dir", str(data_dir)]
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_busy_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with up(tmp_path, "--port", str(port)) as process:
            _, error = process.communicate(timeout=UP_SECONDS_MAX)
    assert process.returncode == 3
    assert f"port {port}" in error
    assert "--port" in error
    assert not list((tmp_path / "logs").iterdir())


def test_a_held_folder_is_named_with_its_holder(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.acquire("http://127.0.0.1:1234")
    with up(tmp_path, "--port", str(free_port())) as process:
        _, error = process.communicate(timeout=UP_SECONDS_MAX)
    data.release()
    assert process.returncode == 3
    assert str(os.getpid()) in error
    assert "http://127.0.0.1:1234" in error


def test_a_process_that_cannot_start_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    bad = {"DEEPFLOW_GATEWAY_JOBS_MAX": "none"}
    with up(tmp_path, "--port", str(free_port()), "--json", **bad) as process:
        output, error = process.communicate(timeout=UP_SECONDS_MAX)
    assert process.returncode == 1
    assert "gateway-0 keeps failing" in error
    last = json.loads(output.splitlines()[-1])
    assert last["event"] == "failed"
    assert "DEEPFLOW_GATEWAY_JOBS_MAX" in last["log_tail"]
    assert not DataDir(tmp_path).is_held


def test_a_model_that_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    arguments = ("--model", str(model), "--device", "emulated:zero", "--port", str(free_port()))
    with up(tmp_path / "data", *arguments) as process:
        _, error = process.communicate(timeout=UP_SECONDS_MAX)
    assert process.returncode == 1
    assert "cannot deploy model" in error


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", WEIGHTS[:-1000], "file not fully covered"),
        ("config.json", b"[" * 100_000, "config.json: not valid JSON"),
        ("tokenizer.json", b"garbage", "tokenizer.json"),
    ],
)
def test_a_damaged_model_is_named_and_not_waited_for(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    (model / name).write_bytes(content)
    arguments = ("--model", str(model), "--port", str(free_port()))
    with up(tmp_path / "data", *arguments) as process:
        _, error = process.communicate(timeout=UP_SECONDS_MAX)
    assert process.returncode == 1
    assert reason in error.split("\n  | ")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_on_the_way_up_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path, "--port", str(free_port()), "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("step") == "kv_store":
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.communicate(timeout=UP_SECONDS_MAX)
    assert process.returncode == 0
    assert children
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert not (tmp_path / "supervisor.sock").exists()
