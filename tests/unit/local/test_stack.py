import sys
from pathlib import Path

import pytest

from deepflow import config
from deepflow.local.data_dir import DataDir, Ports, Secrets
from deepflow.local.nats_users import SERVICES, SUPERVISOR, password_of
from deepflow.local.redis_users import kv_store_password
from deepflow.local.stack import Stack, StackOptions
from deepflow.local.tls_folder import TlsFolder
from services.cluster_manager.config import ClusterManagerConfig
from services.gateway.config import GatewayConfig
from services.job_executor.config import JobExecutorConfig
from services.kv_store.config import KvStoreConfig

SECRETS = Secrets("token", "nats-secret", "redis-secret")
PORTS = Ports(1001, 1002, 1003, 1004, 1005, 1006, (1007, 1008))


def _stack(tmp_path: Path, options: StackOptions | None = None, **inherited: str) -> Stack:
    return Stack(options or StackOptions(), DataDir(tmp_path), SECRETS, PORTS, inherited)


def test_every_service_reads_what_it_is_told(tmp_path: Path) -> None:
    stack = _stack(tmp_path, StackOptions(port=9000, gateways=2, job_executors=3))
    manager = config.load(
        ClusterManagerConfig, "cluster_manager", environ=stack.cluster_managers()[0].environment
    )
    assert (manager.port, manager.health_port, manager.job_executors) == (1005, 1006, 3)
    assert (manager.driver, manager.supervisor_socket) == ("local", str(stack.data.socket))
    store = config.load(
        KvStoreConfig, "kv_store", environ=stack.kv_store(initialise=True).environment
    )
    assert (store.port, store.redis_url, store.redis_password, store.initialise) == (
        1003,
        "redis://kv-store@127.0.0.1:1002/0",
        kv_store_password("redis-secret"),
        True,
    )
    spec = stack.gateway("gateway-1", 9001)
    gateway = config.load(GatewayConfig, "gateway", environ=spec.environment)
    assert (gateway.id, gateway.port, gateway.host) == ("gateway-1", 9001, "127.0.0.1")
    assert (gateway.meet_seconds_max, manager.gateways) == (5.0, 2)
    for settings in (manager, store, gateway):
        assert settings.cluster_token == "token"
        assert settings.nats_url == "nats://127.0.0.1:1001"
        assert settings.kv_store_address == "127.0.0.1:1003"
        assert settings.cluster_manager_address == "127.0.0.1:1005,127.0.0.1:1007"


def test_each_service_is_told_the_password_of_its_own_nats_user_only(tmp_path: Path) -> None:
    stack = _stack(tmp_path, DEEPFLOW_NATS_USER="from", DEEPFLOW_NATS_PASSWORD="outside")
    passwords = {
        service: password_of(user, SECRETS.nats_password) for service, user in SERVICES.items()
    }
    assert len({*passwords.values(), password_of(SUPERVISOR, SECRETS.nats_password)}) == 6
    for service, user in SERVICES.items():
        told = stack.service(service, "one", {}).environment
        assert (told["DEEPFLOW_NATS_USER"], told["DEEPFLOW_NATS_PASSWORD"]) == (
            user.name,
            passwords[service],
        )
        secret = {value for value in told.values() if value in passwords.values()}
        assert secret == {passwords[service]}
        assert not {SECRETS.nats_password, SECRETS.redis_password} & set(told.values())


def test_a_standby_has_a_name_and_ports_of_its_own(tmp_path: Path) -> None:
    _, standby = _stack(tmp_path).cluster_managers()
    settings = config.load(ClusterManagerConfig, "cluster_manager", environ=standby.environment)
    assert standby.name == settings.id == "cluster-manager-1"
    assert (settings.port, settings.health_port) == (1007, 1008)


def test_the_token_of_a_hub_stays_with_the_command(tmp_path: Path) -> None:
    stack = _stack(tmp_path, HF_TOKEN="secret", HF_ENDPOINT="http://hub")
    specs = (
        stack.embedded("nats", ("nats-server",)),
        stack.gateway("gateway-0", 8000),
        *stack.cluster_managers(),
    )
    for spec in specs:
        assert "secret" not in spec.environment.values()


def test_no_service_is_told_what_it_does_not_know(tmp_path: Path) -> None:
    stack = _stack(tmp_path)
    for kind, spec in (
        (ClusterManagerConfig, stack.cluster_managers()[0]),
        (KvStoreConfig, stack.kv_store(initialise=False)),
        (GatewayConfig, stack.gateway("gateway-0", 8000)),
        (JobExecutorConfig, stack.service("job_executor", "je-0", {"jobs_max": 5})),
    ):
        assert config.unknown_variables(kind, spec.service, spec.environment) == []


def test_settings_become_variables_of_that_service(tmp_path: Path) -> None:
    spec = _stack(tmp_path).service("task_executor", "te-0", {"preload": "torch", "on": True})
    assert spec.environment["DEEPFLOW_TASK_EXECUTOR_ID"] == "te-0"
    assert spec.environment["DEEPFLOW_TASK_EXECUTOR_PRELOAD"] == "torch"
    assert spec.environment["DEEPFLOW_TASK_EXECUTOR_ON"] == "true"
    assert spec.command == (sys.executable, "-P", "-m", "services.task_executor")


def test_what_names_one_process_is_not_inherited_by_all(tmp_path: Path) -> None:
    stack = _stack(tmp_path, DEEPFLOW_PORT="1", DEEPFLOW_LOG_LEVEL="debug", HOME="/home/x")
    assert "DEEPFLOW_PORT" not in stack.environment
    assert stack.environment["DEEPFLOW_LOG_LEVEL"] == "debug"
    assert stack.environment["HOME"] == "/home/x"


def test_no_secret_is_on_a_command_line_or_told_to_redis(tmp_path: Path) -> None:
    stack = _stack(tmp_path, DEEPFLOW_CLUSTER_TOKEN="from outside")
    redis = stack.embedded("redis", ("redis-server", "redis.conf"))
    assert not [name for name in redis.environment if name.startswith("DEEPFLOW_")]
    for spec in (redis, stack.cluster_managers()[0], stack.gateway("gateway-0", 8000)):
        assert not set(spec.command) & {"token", "nats-secret", "redis-secret"}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("node7", "http://node7:8000"),
    ],
)
def test_urls_are_reachable_from_here(host: str, url: str) -> None:
    assert StackOptions(host=host).url(8000) == url


def test_over_tls_all_are_told_the_same_and_the_gateways_more(tmp_path: Path) -> None:
    folder = TlsFolder(tmp_path / "tls")
    stack = _stack(
        tmp_path,
        StackOptions(tls=folder),
        DEEPFLOW_TLS_CA="/outside",
        DEEPFLOW_KV_STORE_TLS_KEY="/outside",
        DEEPFLOW_GATEWAY_HTTPS_KEY="/outside",
    )
    gateway = stack.gateway("gateway-0", 8000)
    told = config.load(GatewayConfig, "gateway", environ=gateway.environment)
    assert told.https_certificate == str(folder.public.certificate)
    assert told.https_key == str(folder.public.key)
    for spec in (gateway, stack.kv_store(initialise=False), *stack.cluster_managers()):
        assert spec.environment.items() >= folder.mesh_environment.items()
        assert "/outside" not in spec.environment.values()
    assert stack.options.url(8000) == "https://127.0.0.1:8000"


def test_without_tls_nobody_is_told_of_any(tmp_path: Path) -> None:
    """Also not by the environment: the supervisor would not understand its own services."""
    stack = _stack(tmp_path, DEEPFLOW_TLS_CA="/outside", DEEPFLOW_GATEWAY_HTTPS_KEY="/outside")
    for spec in (stack.gateway("gateway-0", 8000), *stack.cluster_managers()):
        assert not [name for name in spec.environment if "_TLS_" in name or "_HTTPS_" in name]
