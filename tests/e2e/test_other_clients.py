"""Clients of others, each in an environment of its own: they pin other releases than we do."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import clients
from tests.stack import Stack

SECONDS_MAX = 300
PYTHON = Path(os.environ.get("DEEPFLOW_CLIENTS_PYTHON", ".venv-clients/bin/python"))

needs_clients = pytest.mark.skipif(
    not PYTHON.exists(), reason="`make clients` (part of `make test`) builds their environment"
)


def run(script: str, stack: Stack, model: str) -> dict[str, Any]:
    path = Path(next(iter(clients.__path__))) / script
    done = subprocess.run(
        [PYTHON, path, f"{stack.url}/v1", model],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        # LiteLLM would fetch its price list on import.
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@needs_clients
def test_langchain(stack: Stack, model: str) -> None:
    answer = run("langchain_smoke.py", stack, model)
    assert "12" in answer["whole"]
    assert answer["streamed"] == answer["later"] == answer["whole"]
    assert answer["batch"] == [answer["whole"]] * 2
    assert answer["streamed_usage"] == [answer["usage"]]
    assert set(answer["structured"]) == {"word", "count"}
    assert answer["structured"]["count"] in (1, 2, 3)


@needs_clients
def test_litellm(stack: Stack, model: str) -> None:
    answer = run("litellm_smoke.py", stack, model)
    assert "12" in answer["whole"]
    assert answer["streamed"] == answer["later"] == answer["whole"]
    assert answer["usage"] > 0
    assert answer["text"]
    assert answer["text_tokens"] == 5
    assert "temperature" in answer["refusal"]
