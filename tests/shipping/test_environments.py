"""Each image's environment holds what its service imports, and only the task executor's torch."""

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepflow.lifecycle import bound_to_parent
from tests.servers import free_port
from tests.shipping.environments import python_for
from tests.stack import (
    ANSWER_SECONDS_MAX,
    COMMAND_SECONDS_MAX,
    DOWN_SECONDS_MAX,
    wait_until,
)

TORCHLESS = ("gateway", "job-executor", "cluster-manager", "kv-store", "cli")
SERVICES = ("gateway", "job-executor", "cluster-manager", "kv-store")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="environments-") as path:
        yield Path(path)


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-P", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, cwd="/"
    )


@pytest.mark.parametrize("extra", TORCHLESS)
def test_only_the_task_executor_has_torch(extra: str, folder: Path) -> None:
    found = run(
        python_for(extra, folder),
        "-c",
        "import importlib.util as i, deepflow;"
        "print([n for n in ('torch', 'numpy', 'pytest') if i.find_spec(n)])",
    )
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize("extra", SERVICES)
def test_a_service_starts_and_ends_with_its_own_extra_alone(extra: str, folder: Path) -> None:
    service, port = extra.replace("-", "_"), free_port()
    environment = {
        "DEEPFLOW_CLUSTER_TOKEN": "a token",
        f"DEEPFLOW_{service.upper()}_PORT": "0",
        # Nobody listens there: a service must come up without the others.
        "DEEPFLOW_NATS_URL": f"nats://127.0.0.1:{free_port()}",
        "DEEPFLOW_CLUSTER_MANAGER_ADDRESS": f"127.0.0.1:{free_port()}",
        "DEEPFLOW_KV_STORE_ADDRESS": f"127.0.0.1:{free_port()}",
        "DEEPFLOW_KV_STORE_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    name = "PORT" if service == "gateway" else "HEALTH_PORT"
    environment[f"DEEPFLOW_{service.upper()}_{name}"] = str(port)
    log = folder / f"{extra}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            bound_to_parent([str(python_for(extra, folder)), "-P", "-m", f"services.{service}"]),
            env=environment,
            stdout=output,
            stderr=output,
            cwd="/",
        )
    try:
        wait_until(lambda: _is_alive(port, process, log), f"{service} answers /health")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DOWN_SECONDS_MAX) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _is_alive(port: int, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        url = f"http://127.0.0.1:{port}/health"
        return httpx.get(url, timeout=ANSWER_SECONDS_MAX).status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_needs_no_service(folder: Path) -> None:
    told = run(python_for("cli", folder), "-m", "deepflow.cli.main", "deploy", "--help")
    assert told.returncode == 0, told.stderr
    assert "--cluster-manager" in told.stdout
