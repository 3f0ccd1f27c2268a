"""What a person may get wrong before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepflow.cli.main import app
from deepflow.cli.model_choice import choose_model
from deepflow.demo import MODEL_DIR


def up(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["up", *arguments])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--device", "tpu"], "emulated:ascend-910b"),
        (["--model", "/no/such/folder"], "no such folder"),
        (["--name", "a/../b"], "--name"),
        (["--task-executors", "0"], "--task-executors"),
        (["--job-executors", "-1"], "--job-executors"),
        (["--gateways", "many"], "--gateways"),
        (["--port", "70000"], "--port"),
        (["--port", "65535", "--gateways", "2"], "--port"),
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


def test_the_demo_model_is_the_default() -> None:
    choice = choose_model(None, None, "cpu", 1)
    assert (choice.name, choice.source) == ("demo", MODEL_DIR)


def test_a_model_is_called_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    assert choose_model(folder, None, "cpu", 1).name == "tiny-llama"
