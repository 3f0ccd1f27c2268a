"""compose/ says what it means: it is valid, complete, closed, and agrees with the services."""

import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from deepflow.config import ServiceConfig, load, unknown_variables
from services.cluster_manager.config import ClusterManagerConfig
from services.gateway.config import GatewayConfig
from services.job_executor.config import JobExecutorConfig
from services.kv_store.config import KvStoreConfig
from services.task_executor.config import TaskExecutorConfig
from tests.shipping.compose_file import (
    COMPOSE,
    DOCKERFILE,
    FILE,
    ROOT,
    Container,
    MissingVariable,
    fill_in,
    read_containers,
    read_env,
)

EXAMPLE = COMPOSE / ".env.example"
CONFIGS: dict[str, type[ServiceConfig]] = {
    "gateway": GatewayConfig,
    "job-executor": JobExecutorConfig,
    "task-executor": TaskExecutorConfig,
    "cluster-manager": ClusterManagerConfig,
    "kv-store": KvStoreConfig,
}
COMPOSE_FILES = sorted(
    file for file in COMPOSE.glob("*.yaml") if "services:" in file.read_text().splitlines()
)
SECRET = re.compile(r"_(PASSWORD|TOKEN)$")


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    return {
        name: f"secret-of-{name}" if SECRET.search(name) else value
        for name, value in read_env(EXAMPLE).items()
    }


@pytest.fixture(scope="module")
def containers(variables: dict[str, str]) -> dict[str, Container]:
    return read_containers(variables)


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_the_file_follows_the_published_schema(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    told = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_missing_secret_stops_the_start() -> None:
    with pytest.raises(MissingVariable, match="make-secrets"):
        read_containers({})


def test_variables_are_filled_in_as_compose_does() -> None:
    text = {"a": ["${ONE}-${TWO:-two}", "$${ONE}", "${EMPTY:-x}"]}
    assert fill_in(text, {"ONE": "1", "EMPTY": ""}) == {"a": ["1-two", "${ONE}", "x"]}


def test_every_service_understands_what_it_is_told(containers: dict[str, Container]) -> None:
    for name, kind in CONFIGS.items():
        service, told = name.replace("-", "_"), containers[name].environment
        config = load(kind, service, environ=told)
        assert unknown_variables(kind, service, told) == []
        known = {
            f"DEEPFLOW_{p}{f.upper()}"
            for f in kind.model_fields
            for p in ("", f"{service.upper()}_")
        }
        assert {key for key in told if key.startswith("DEEPFLOW_")} <= known
        # Peers, NATS and Redis are containers of this file, on the ports they listen on.
        for peer, port in ((config.kv_store_address, 7102), (config.cluster_manager_address, 7101)):
            host, _, number = peer.partition(":")
            assert int(number) == port
            assert (
                containers[host].environment[f"DEEPFLOW_{host.upper().replace('-', '_')}_PORT"]
                == number
            )


def test_a_task_executor_elsewhere_reaches_what_is_opened_for_it() -> None:
    variables = {name: "secret" for name in read_env(EXAMPLE) if SECRET.search(name)}
    variables |= {"CONTROL_ADDRESS": "10.0.0.1", "HOST_ADDRESS": "10.0.0.2"}
    opened = fill_in(yaml.safe_load((COMPOSE / "several-hosts.yaml").read_text()), variables)
    ports = {port for it in opened["services"].values() for port in it["ports"]}
    alone = fill_in(yaml.safe_load((COMPOSE / "task-executor-host.yaml").read_text()), variables)
    told = alone["services"]["task-executor"]["environment"]
    config = load(TaskExecutorConfig, "task_executor", environ=told)
    assert unknown_variables(TaskExecutorConfig, "task_executor", told) == []
    assert config.advertised_host == "10.0.0.2"
    wanted = (config.nats_url, config.kv_store_address, config.cluster_manager_address)
    reached = [address.removeprefix("nats://") for address in wanted]
    assert {f"{it}:{it.rpartition(':')[2]}" for it in reached} == ports


def test_replicas_get_ids_and_addresses_of_their_own(containers: dict[str, Container]) -> None:
    for name in ("gateway", "job-executor", "task-executor"):
        definition, told = containers[name].definition, containers[name].environment
        assert "{hostname}" in told[f"DEEPFLOW_{name.upper().replace('-', '_')}_ID"]
        assert told["DEEPFLOW_HOST"] == "0.0.0.0"
        # Empty: then peers are told the container's own name.
        assert "DEEPFLOW_ADVERTISE_HOST" not in told
        assert "container_name" not in definition and "hostname" not in definition


def test_only_the_gateway_is_published_and_only_on_loopback(
    containers: dict[str, Container],
) -> None:
    published = {
        name: it.definition["ports"] for name, it in containers.items() if "ports" in it.definition
    }
    assert published == {"gateway": ["127.0.0.1:8000:8000"]}
    networks = yaml.safe_load(FILE.read_text())["networks"]
    assert networks["mesh"] == {"internal": True}
    for name, it in containers.items():
        way_out = {"gateway", "cli"}
        assert set(it.definition["networks"]) == ({"mesh", "edge"} if name in way_out else {"mesh"})


def test_every_container_is_watched_bounded_and_without_rights(
    containers: dict[str, Container],
) -> None:
    for name, it in containers.items():
        one_shot = it.definition["restart"] == "no"
        assert one_shot or it.definition["restart"] == "unless-stopped", name
        assert it.definition["read_only"] and it.definition["cap_drop"] == ["ALL"], name
        assert it.definition["logging"]["options"]["max-size"], name
        # The collector's image holds no program that could ask it.
        assert one_shot or name == "otel-collector" or "healthcheck" in it.definition, name


def test_a_service_gives_up_before_it_is_killed(containers: dict[str, Container]) -> None:
    for name, kind in CONFIGS.items():
        config = load(kind, name.replace("-", "_"), environ=containers[name].environment)
        grace = int(containers[name].definition["stop_grace_period"].removesuffix("s"))
        assert config.drain_seconds + 5 <= grace


def test_no_container_is_told_the_secret_of_another(containers: dict[str, Container]) -> None:
    for name in CONFIGS:
        secrets = {
            value for value in containers[name].environment.values() if "secret-of-" in value
        }
        own = name.upper().replace("-", "_")
        allowed = {"secret-of-DEEPFLOW_CLUSTER_TOKEN", f"secret-of-NATS_{own}_PASSWORD"}
        allowed |= {"secret-of-REDIS_KV_STORE_PASSWORD"} if name == "kv-store" else set()
        assert secrets == allowed


def test_every_mounted_file_is_there(containers: dict[str, Container]) -> None:
    missing = set()
    for it in containers.values():
        for volume in it.definition.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./models" and not (COMPOSE / source).exists():
                missing.add(source)
    assert not missing


def test_the_dockerfile_builds_what_the_compose_file_asks_for(
    containers: dict[str, Container],
) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    assert {it.target for it in containers.values() if it.is_ours} == stages - {"wheel", "base"}
    for it in containers.values():
        if it.is_ours:
            assert it.definition["build"]["dockerfile"] == "compose/Dockerfile"
            assert (COMPOSE / it.definition["build"]["context"]).resolve() == ROOT


def test_the_dockerfile_copies_and_installs_what_exists() -> None:
    text = DOCKERFILE.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        name = stage.splitlines()[0].split()[-1]
        for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE):
            *sources, _ = line.split()
            assert all((ROOT / source).exists() for source in sources), line
        installed = re.findall(r"\.whl\)\[([\w-]+)\]", stage)
        assert installed == ([] if name in ("wheel", "base") else [name])
        assert set(installed) <= set(extras)
        for module in re.findall(r'"-m", "([\w.]+)"', stage):
            assert module == f"services.{name.replace('-', '_')}"
            assert (ROOT / module.replace(".", "/") / "__main__.py").exists()
        if installed:
            assert "\nUSER deepflow\n" in stage, f"{name} runs as root"


def test_the_build_sees_the_sources_only() -> None:
    ignored = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == kept


def test_torch_is_the_release_that_the_makefile_installs() -> None:
    pinned = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"ARG TORCH={pinned[1]}\n" in DOCKERFILE.read_text()


def make_secrets(file: Path) -> dict[str, str]:
    subprocess.run([str(COMPOSE / "make-secrets"), str(file)], check=True, capture_output=True)
    return read_env(file)


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    made = make_secrets(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = [value for name, value in made.items() if SECRET.search(name)]
    assert len(set(secrets)) == len(secrets) >= 9
    assert all(re.fullmatch(r"s[0-9a-f]{48}", value) for value in secrets)
    assert make_secrets(file) == made
    read_containers(made)


def test_a_later_release_adds_only_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DEEPFLOW_PORT=9000\nDEEPFLOW_CLUSTER_TOKEN=kept\nHF_TOKEN=\n")
    made = make_secrets(file)
    assert made["HF_TOKEN"] == ""
    assert made["DEEPFLOW_PORT"] == "9000"
    assert made["DEEPFLOW_CLUSTER_TOKEN"] == "kept"
    assert {name for name in read_env(EXAMPLE) if SECRET.search(name)} <= set(made)


def test_the_example_holds_no_secret() -> None:
    assert not any(value for name, value in read_env(EXAMPLE).items() if SECRET.search(name))
