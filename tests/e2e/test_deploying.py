"""Several models in one stack, with the commands that a person types."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepflow.demo import MODEL_DIR
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.stack import ANSWER_SECONDS_MAX, Stack, running_stack, wait_until

EMULATED = ("--device", "emulated:zero")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    """The demo model under another name."""
    files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
    with fake_hub(files) as hub:
        yield hub


@pytest.fixture(scope="module")
def stack(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("deploying")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("DEEPFLOW_MODELS_DIR", str(folder / "models"))
        environment.delenv("HF_HUB_OFFLINE", raising=False)
        options = (*EMULATED, "--max-tokens", "512", "--kv-memory", "64MiB")
        with running_stack(folder / "data", *options) as running:
            yield running


def complete(stack: Stack, model: str) -> int:
    body = {"model": model, "prompt": "hello", "max_tokens": 3}
    url = f"{stack.url}/v1/completions"
    return httpx.post(url, json=body, timeout=ANSWER_SECONDS_MAX).status_code


def wait_until_it_completes(stack: Stack, model: str) -> None:
    """The gateway hears of it a moment after the command that deployed it."""
    wait_until(lambda: complete(stack, model) == 200, f"{model} answers")


def models(stack: Stack) -> dict[str, dict[str, object]]:
    rows = json.loads(stack.cli("models", "--json").stdout)["models"]
    return {row["name"]: row for row in rows}


def test_how_it_is_held_is_shown(stack: Stack) -> None:
    demo = models(stack)["demo"]
    assert (demo["state"], demo["ready"], demo["replicas"]) == ("ready", 1, 1)
    assert (demo["dtype"], demo["max_tokens"], demo["context_length"]) == ("bfloat16", 512, 1024)
    assert demo["kv_bytes"] == 64 << 20
    table = stack.cli("models").stdout + stack.cli("status").stdout
    assert "demo" in table and "64.0 MiB" in table
    rows = {row["name"]: row for row in stack.status()["deployments"]}
    assert rows["demo"]["kv_bytes"] == 64 << 20


def test_a_second_model_serves_beside_the_first_until_it_is_undeployed(
    stack: Stack, tmp_path: Path
) -> None:
    folder = tmp_path / "second"
    shutil.copytree(MODEL_DIR, folder)
    done = stack.cli("deploy", str(folder), *EMULATED, "--dtype", "float32", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "ready" and events[-1]["dtype"] == "float32"
    wait_until_it_completes(stack, "second")
    assert complete(stack, "demo") == 200
    assert set(models(stack)) == {"demo", "second"}
    stack.cli("scale", "second", "2")
    stack.cli("deploy", str(folder), *EMULATED, "--dtype", "bfloat16")
    changed = models(stack)["second"]
    assert (changed["replicas"], changed["dtype"]) == (2, "bfloat16")
    assert "undeployed second" in stack.cli("undeploy", "second").stdout
    assert set(models(stack)) == {"demo"}
    wait_until(lambda: complete(stack, "second") == 404, "the gateway hears that it is gone")
    assert complete(stack, "demo") == 200


def test_a_hub_id_is_fetched_checked_and_served(stack: Stack, hub: FakeHub) -> None:
    done = stack.cli("deploy", "acme/tiny", *EMULATED)
    assert "fetch acme/tiny" in done.stdout and "acme/tiny is ready" in done.stdout
    assert str(models(stack)["acme/tiny"]["source"]).endswith(f"models/acme/tiny/{COMMIT}")
    wait_until_it_completes(stack, "acme/tiny")
    fetched = len(hub.gets("model.safetensors"))
    stack.cli("deploy", "acme/tiny", *EMULATED)
    assert len(hub.gets("model.safetensors")) == fetched == 1
    stack.cli("undeploy", "acme/tiny")


def test_what_cannot_be_served_is_said_at_once(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "gpt"
    shutil.copytree(MODEL_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    refused = stack.cli("deploy", str(folder), check=False)
    assert refused.returncode == 2
    assert "GPT2LMHeadModel" in refused.stderr and "LlamaForCausalLM" in refused.stderr
    assert set(models(stack)) == {"demo"}


def test_what_does_not_fit_is_said_in_the_engines_words_and_withdrawn(stack: Stack) -> None:
    asked = ("--name", "big", "--device", "cpu", "--kv-memory", "900TiB", "--json")
    refused = stack.cli("deploy", str(MODEL_DIR), *asked, check=False)
    assert refused.returncode == 1
    last = json.loads(refused.stdout.splitlines()[-1])
    assert last["event"] == "failed"
    for words in ("it does not fit", "what would fit: KV memory of", "big was withdrawn"):
        assert words in last["message"] and words in refused.stderr
    assert set(models(stack)) == {"demo"}
    assert complete(stack, "demo") == 200
