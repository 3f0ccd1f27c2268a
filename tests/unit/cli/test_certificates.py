"""`deepflow certificates`, and what commands and `up` make of TLS folders and variables."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deepflow import rpc
from deepflow.cli.main import app
from deepflow.local.tls_folder import TlsFolder
from tests.certificates import make_folder, serial_of
from tests.servers import free_port


def deepflow(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environment)


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = TlsFolder(tmp_path / "tls")
    made = deepflow(
        "certificates", "create", str(folder.root), "--host", "a.example", "--days", "3"
    )
    assert (made.exit_code, "3 days" in made.stdout) == (0, True)
    folder.check()
    before = serial_of(folder.public.certificate)
    again = deepflow("certificates", "create", str(folder.root))
    assert again.exit_code == 1 and "never overwritten" in again.stderr
    assert serial_of(folder.public.certificate) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--host", "https://a"), "no host name"), (("--days", "0"), "days")],
)
def test_wrong_options_make_nothing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = deepflow("certificates", "create", str(tmp_path / "tls"), *arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert not (tmp_path / "tls").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = deepflow("certificates", "create", str(tmp_path / "file" / "tls"))
    assert result.exit_code == 1 and "cannot write to" in result.stderr


def test_up_starts_nothing_with_a_bad_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tls")
    folder.service.key.unlink()
    data = tmp_path / "data"
    result = deepflow("up", "--tls", str(folder.root), "--data-dir", str(data), "--port", "1")
    assert result.exit_code == 3
    assert "service-key.pem" in result.stderr and "certificates create" in result.stderr
    assert not data.exists()


def test_a_command_for_elsewhere_names_the_variable_that_is_missing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tls")
    variables = {**folder.mesh_environment, "DEEPFLOW_CLUSTER_TOKEN": "token"}
    del variables["DEEPFLOW_TLS_KEY"]
    address = f"127.0.0.1:{free_port()}"
    result = deepflow("models", "--cluster-manager", address, **variables)
    assert result.exit_code == 2
    assert "DEEPFLOW_TLS_KEY is not set" in result.stderr
    assert rpc._identity is None
