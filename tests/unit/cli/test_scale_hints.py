"""What a person is told who asks to scale something that cannot be."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepflow.cli import scale_hints
from deepflow.cli.main import app
from deepflow.cli.scale_hints import hint_for, wrong_count
from deepflow.members import COUNT_MAX, SCALED_KINDS
from tests.servers import free_port


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("job_executors", "'job-executors'"),
        ("Job-Executor", "'job-executors'"),
        ("gateway", "'gateways'"),
        ("task-executors", "deepflow scale MODEL N"),
        ("cluster-managers", "deepflow up --cluster-managers"),
        ("redis", "not scaled"),
    ],
)
def test_who_is_close_is_told_what_was_meant(name: str, hint: str) -> None:
    assert hint in hint_for(name)


def test_a_model_is_no_misspelt_kind() -> None:
    assert hint_for("llama") == ""


@pytest.mark.parametrize("count", [1, 64])
def test_what_may_be_asked_for(count: int) -> None:
    assert wrong_count("llama", count) == ""


def test_none_of_a_model_is_undeploying_it() -> None:
    assert "deepflow undeploy llama" in wrong_count("llama", 0)
    assert "undeploy" not in wrong_count("gateways", 0)
    assert "from 1 to 64" in wrong_count("gateways", 65)


def test_the_command_and_the_cluster_agree() -> None:
    """The command keeps its own copies, because --help imports nothing heavy."""
    assert scale_hints.COUNT_MAX == COUNT_MAX
    for kind in SCALED_KINDS:
        assert "undeploy" not in wrong_count(kind, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama", "0"], "deepflow undeploy llama"),
        (["gateways", "65"], "from 1 to 64"),
        (["llama", "many"], "integer"),
        (["llama"], "N"),
    ],
)
def test_a_wrong_number_ends_with_2(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["scale", *arguments])
    assert result.exit_code == 2 and words in result.stderr


def test_where_nobody_answers_the_next_step_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = CliRunner()
    alone = runner.invoke(app, ["scale", "gateways", "2", "--data-dir", str(tmp_path)])
    assert alone.exit_code == 1 and "deepflow up" in alone.stderr
    monkeypatch.setenv("DEEPFLOW_CLUSTER_TOKEN", "a token")
    monkeypatch.setattr("deepflow.cluster_client.CHANGE_SECONDS", 0.2)
    elsewhere = ["--cluster-manager", f"127.0.0.1:{free_port()}"]
    for command in (["scale", "gateways", "2"], ["undeploy", "llama"]):
        result = runner.invoke(app, [*command, *elsewhere])
        assert result.exit_code == 1 and "'deepflow status' shows" in result.stderr
