from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepflow.cli.logs import _show_end, _show_new
from deepflow.cli.main import app


def logs(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["logs", *arguments, "--data-dir", str(root)])


def _write(root: Path, name: str, text: str) -> Path:
    path = root / "logs" / f"{name}.log"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_the_last_lines_of_one(tmp_path: Path) -> None:
    _write(tmp_path, "te-0", "one\ntwo\nthree\n")
    assert logs(tmp_path, "te-0", "-n", "2").stdout == "two\nthree\n"
    assert logs(tmp_path, "te-0", "-n", "0").stdout == ""


def test_all_of_them_carry_their_names(tmp_path: Path) -> None:
    _write(tmp_path, "nats", "a\n")
    _write(tmp_path, "redis", "b\n")
    assert [line.split() for line in logs(tmp_path).stdout.splitlines()] == [
        ["nats", "|", "a"],
        ["redis", "|", "b"],
    ]


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    _write(tmp_path, "nats", "a\n")
    result = logs(tmp_path, "ghost")
    assert result.exit_code == 2
    assert "there are: nats" in result.stderr


def test_following_shows_whole_new_lines_also_of_new_and_renewed_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, "nats", "old line\n")
    offsets = {path: _show_end(path, 0, with_name=False)}
    path.write_text("old line\nnew\nhal")
    _show_new(path.parent, "nats", offsets)
    assert capsys.readouterr().out == "new\n"
    path.write_text("a\n")
    _show_new(path.parent, "nats", offsets)
    assert capsys.readouterr().out == "a\n"
    _write(tmp_path, "redis", "b\n")
    _show_new(path.parent, None, offsets)
    assert capsys.readouterr().out.split() == ["redis", "|", "b"]
