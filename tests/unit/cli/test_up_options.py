"""What a person may get wrong before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepflow.cli.main import app
from deepflow.cli.model_choice import choose_model
from deepflow.demo import MODEL_DIR
from tests.fake_hub import COMMIT, fake_hub
from tests.servers import free_port


def up(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["up", *arguments])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--device", "tpu"], "emulated:ascend-910b"),
        (["--model", ""], "the model is empty"),
        (["--name", ""], "--name"),
        (["--model", "/no/such/folder"], "no such folder"),
        (["--model", "no-such-folder"], "no folder here, and no hub id either"),
        (["--dtype", "float16"], "float32, bfloat16"),
        (["--dtype", "int8", "--device", "emulated:zero"], "bfloat16, float16, float32"),
        (["--kv-memory", "much"], "write 2GiB"),
        (["--kv-memory", "2PiB"], "write 2GiB"),
        (["--kv-memory", "2000TiB"], "to 1 PiB"),
        (["--kv-memory", "0"], "to 1 PiB"),
        (["--max-tokens", "-1"], "--max-tokens"),
        (["--tool-format", "morse"], "hermes, llama3"),
        (["--tp", "0"], "--tp"),
        (["--pp", "65"], "--pp"),
        (["--tp", "2", "--device", "emulated:zero"], "emulates one accelerator"),
        (["--name", "a/../b"], "--name"),
        (["--task-executors", "0"], "--task-executors"),
        (["--job-executors", "-1"], "--job-executors"),
        (["--gateways", "many"], "--gateways"),
        (["--port", "70000"], "--port"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_wrong_option_is_named_and_ends_with_2(arguments: list[str], hint: str) -> None:
    result = up(*arguments)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert "Traceback" not in result.output


def test_what_a_model_folder_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    result = up("--model", str(tmp_path))
    assert result.exit_code == 2
    assert "tokenizer.json and *.safetensors missing" in result.stderr


def test_an_emulated_device_needs_no_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    choice = choose_model(tmp_path, "big", "emulated:h200", 2)
    assert (choice.name, choice.source, choice.task_executors) == ("big", tmp_path, 2)


def test_a_hub_id_is_fetched_and_named_after_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    monkeypatch.setenv("DEEPFLOW_MODELS_DIR", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with fake_hub(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        choice = choose_model("acme/tiny@v1", None, "cpu", 1)
    assert (choice.name, choice.source) == ("acme/tiny", tmp_path / "acme/tiny" / COMMIT)
    assert (choice.source / "model.safetensors").read_bytes() == b"weights"


def test_a_hub_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFLOW_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    result = up("--model", "acme/tiny")
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr and "Traceback" not in result.output


def test_how_a_model_is_held_becomes_the_deployment() -> None:
    choice = choose_model(
        None, None, "cpu", 2, dtype="bfloat16", max_tokens=512, kv_memory="1.5GiB",
        kv_dram="2GiB", kv_disk="3GiB",
    )  # fmt: skip
    asked = choice.deployment()
    assert (asked.name, asked.replicas, asked.dtype) == ("demo", 2, "bfloat16")
    assert (asked.max_tokens, asked.kv_bytes) == (512, 3 << 29)
    assert (asked.engine.kv_dram_bytes, asked.engine.kv_disk_bytes) == (2 << 30, 3 << 30)


@pytest.mark.parametrize("option", ["--kv-dram", "--kv-disk"])
def test_sizes_of_tiers_are_checked_at_once(option: str) -> None:
    for arguments in ((option, "much"), (option, "2000TiB")):
        result = up(*arguments)
        assert result.exit_code == 2 and option in result.stderr


def test_the_demo_model_is_the_default() -> None:
    choice = choose_model(None, None, "cpu", 1)
    assert (choice.name, choice.source) == ("demo", MODEL_DIR)


def test_a_model_is_called_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    assert choose_model(folder, None, "cpu", 1).name == "tiny-llama"
