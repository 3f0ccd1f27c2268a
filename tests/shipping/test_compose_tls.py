"""compose/tls.yaml: everybody who speaks gRPC gets what mutual TLS needs, and nothing more."""

from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest
import yaml

from deepflow.config import load, unknown_variables
from deepflow.local.tls_folder import TlsFolder
from services.gateway.config import GatewayConfig
from tests.certificates import make_folder
from tests.integration.gateway_support import gateway_stand
from tests.servers import free_port
from tests.shipping.compose_file import COMPOSE, fill_in
from tests.shipping.test_compose_file import CONFIGS
from tests.stack import ANSWER_SECONDS_MAX

KEY_OF_THE_CA = "ca-key.pem"


@pytest.fixture
def folder(tmp_path: Path) -> TlsFolder:
    return make_folder(tmp_path / "tls")


def read(name: str, folder: TlsFolder) -> dict[str, dict[str, Any]]:
    document = yaml.safe_load((COMPOSE / name).read_text())
    services: dict[str, dict[str, Any]] = fill_in(
        document["services"], {"DEEPFLOW_TLS_FOLDER": str(folder.root)}
    )
    return services


def on_this_host(definition: dict[str, Any], inside: str) -> Path:
    """The file of the host that a container sees as `inside`."""
    for volume in definition["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        if PurePosixPath(inside).is_relative_to(target):
            return Path(source) / PurePosixPath(inside).relative_to(target)
    raise AssertionError(f"{inside} is not mounted")


def test_everybody_reads_what_was_made(folder: TlsFolder) -> None:
    services = read("tls.yaml", folder)
    assert set(services) == {*CONFIGS, "cli"}
    services["a host's"] = read("task-executor-host-tls.yaml", folder)["task-executor"]
    for name, definition in services.items():
        told = definition["environment"]
        kind = CONFIGS.get(name, CONFIGS["task-executor"])
        config = load(kind, name.replace("-", "_"), environ=told)
        assert unknown_variables(kind, name.replace("-", "_"), told) == []
        paths = (config.tls_ca, config.tls_certificate, config.tls_key)
        mine = (folder.ca, folder.service.certificate, folder.service.key)
        assert tuple(on_this_host(definition, path) for path in paths) == mine
        with pytest.raises(AssertionError, match="not mounted"):
            on_this_host(definition, f"/tls/{KEY_OF_THE_CA}")
        sources = [Path(it.split(":")[0]) for it in definition["volumes"]]
        assert not any((source / KEY_OF_THE_CA).exists() for source in sources)


def test_the_gateway_shows_the_public_certificate(folder: TlsFolder) -> None:
    gateway = read("tls.yaml", folder)["gateway"]
    config = load(GatewayConfig, "gateway", environ=gateway["environment"])
    assert on_this_host(gateway, config.https_certificate) == folder.public.certificate
    assert on_this_host(gateway, config.https_key) == folder.public.key


async def test_the_health_check_asks_a_port_that_stays_plain(folder: TlsFolder) -> None:
    gateway, port = read("tls.yaml", folder)["gateway"], free_port()
    base = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())["services"]["gateway"]
    metrics_port = base["environment"]["DEEPFLOW_GATEWAY_METRICS_PORT"]
    assert f"http://127.0.0.1:{metrics_port}/ready" in gateway["healthcheck"]["test"][-1]
    files: dict[str, Any] = {
        "https_certificate": str(folder.public.certificate),
        "https_key": str(folder.public.key),
    }
    async with (
        gateway_stand(metrics_port=port, **files),
        httpx.AsyncClient(timeout=ANSWER_SECONDS_MAX) as http,
    ):
        assert (await http.get(f"http://127.0.0.1:{port}/ready")).status_code == 200
