import os
import stat
from pathlib import Path

import pytest

from deepflow.local.data_dir import DataDir, default_root
from deepflow.local.errors import StackAlreadyRuns, StackError
from deepflow.local.paths import check_socket_path


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "data")
    data.acquire("http://127.0.0.1:8000")
    return data


def test_secrets_are_kept_and_private(data: DataDir) -> None:
    first = data.read_secrets()
    assert data.read_secrets() == first
    assert len({first.cluster_token, first.nats_password, first.redis_password}) == 3
    assert stat.S_IMODE((data.root / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.root.stat().st_mode) == 0o700


def test_ports_are_kept_while_they_are_free(data: DataDir) -> None:
    first = data.choose_ports()
    assert len(set(vars_of(first))) == len(vars_of(first))
    assert data.choose_ports() == first
    more = data.choose_ports(3)
    assert len({*more.standbys, more.nats, more.cluster_manager}) == 6
    assert data.choose_ports(2).standbys == more.standbys[:2]


def vars_of(ports: object) -> list[int]:
    return [getattr(ports, name) for name in type(ports).__struct_fields__]  # type: ignore[attr-defined]


def test_a_second_stack_is_told_who_runs(data: DataDir) -> None:
    other = DataDir(data.root)
    with pytest.raises(StackAlreadyRuns) as refusal:
        other.acquire("http://127.0.0.1:9000")
    assert str(os.getpid()) in str(refusal.value)
    assert "http://127.0.0.1:8000" in str(refusal.value)
    assert other.is_held


def test_a_released_folder_is_free(data: DataDir) -> None:
    data.release()
    other = DataDir(data.root)
    assert not other.is_held
    other.acquire("http://127.0.0.1:9000")
    other.release()


def test_a_record_space_is_new_once(data: DataDir) -> None:
    assert data.is_new_record_space
    data.record_space_is_made()
    assert not data.is_new_record_space


def test_a_damaged_secret_file_is_named(data: DataDir) -> None:
    (data.root / "secrets.json").write_text("{")
    with pytest.raises(StackError, match=r"secrets\.json"):
        data.read_secrets()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="--data-dir"):
        DataDir(tmp_path / "file" / "data").acquire("http://x")


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "deepflow"


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    check_socket_path(tmp_path / "supervisor.sock")
    with pytest.raises(StackError, match="--data-dir"):
        check_socket_path(Path("/") / ("a" * 100) / "supervisor.sock")
