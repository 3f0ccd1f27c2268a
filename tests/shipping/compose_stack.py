"""The stack of the compose file without docker: each container a process on an address of its own.

127.0.0.0/8 is all this machine's, so every container gets an address there and keeps its ports;
names of containers in its environment become addresses, and nothing else is changed.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from deepflow.lifecycle import bound_to_parent
from deepflow.local import binaries
from tests.shipping.compose_file import COMPOSE, Container, read_containers, read_env
from tests.shipping.environments import python_for
from tests.stack import ANSWER_SECONDS_MAX, COMMAND_SECONDS_MAX, DOWN_SECONDS_MAX, wait_until

HEALTH_PORTS = {
    "gateway": 8000,
    "job-executor": 7203,
    "task-executor": 7204,
    "cluster-manager": 7201,
    "kv-store": 7202,
}


@dataclass
class Replica:
    """One container's process."""

    name: str
    address: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """SIGTERM, as `docker compose stop` sends it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DOWN_SECONDS_MAX)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} does not end:\n{self.text[-4000:]}") from error


@dataclass
class ComposeStack:
    folder: Path
    environments: Path
    containers: dict[str, Container]
    addresses: dict[str, str]
    running: dict[str, Replica] = field(default_factory=dict)
    # The API key that its clients use.
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.addresses['gateway']}:8000"

    @property
    def redis_data(self) -> Path:
        """The volume redis-data."""
        return self.folder / "redis-data"

    def up(self, name: str, number: int = 1) -> Replica:
        """One more container of a service; returns at once."""
        container, replica = self.containers[name], f"{name}-{number}"
        assert replica not in self.running, f"{replica} runs already"
        address = self.addresses[name] if number == 1 else _beside(self.addresses[name], number)
        command, environment = self._command(container, address)
        environment |= self._environment(container, address, replica)
        log = self.folder / f"{replica}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                bound_to_parent(command), env=environment, stdout=output, stderr=output, cwd="/"
            )
        self.running[replica] = Replica(replica, address, process, log)
        return self.running[replica]

    def wait_until_healthy(self, *replicas: str) -> None:
        for replica in replicas:
            wait_until(partial(self.is_ready, replica), f"{replica} is ready")

    def is_ready(self, replica: str) -> bool:
        it = self.running[replica]
        assert it.process.poll() is None, f"{replica} ended:\n{it.text[-4000:]}"
        try:
            return self._probe(replica).status_code == 200
        except httpx.TransportError:
            return False

    def detail(self, replica: str) -> str:
        """What the service says of its state."""
        return str(self._probe(replica).json()["detail"])

    def _probe(self, replica: str) -> httpx.Response:
        port = HEALTH_PORTS[replica.rpartition("-")[0]]
        url = f"http://{self.running[replica].address}:{port}/ready"
        return httpx.get(url, timeout=ANSWER_SECONDS_MAX)

    def health_check(self, replica: str) -> int:
        """Exit status of the check that docker would run in this container."""
        it, name = self.running[replica], replica.rpartition("-")[0]
        kind, *command = self.containers[name].health_command
        assert kind == "CMD" and command[0] == "python"
        command[0] = str(python_for(name, self.environments))
        here = [word.replace("127.0.0.1", it.address) for word in command]
        return subprocess.run(here, capture_output=True, timeout=COMMAND_SECONDS_MAX).returncode

    def run_once(self, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`docker compose run --rm NAME ARGUMENTS`."""
        container = self.containers[name]
        command, environment = self._command(container, self.addresses[name])
        environment |= self._environment(container, self.addresses[name], name)
        return subprocess.run(
            [*command, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            cwd="/",
        )

    def down(self, *replicas: str) -> dict[str, int]:
        return {name: self.running.pop(name).stop() for name in replicas}

    def kill(self) -> None:
        for replica in self.running.values():
            replica.process.kill()
            replica.process.wait()
        self.running.clear()

    def _command(self, container: Container, address: str) -> tuple[list[str], dict[str, str]]:
        """What runs in the container, and what its image sets."""
        name = container.name
        if name == "nats":
            config = str(COMPOSE / "nats" / "nats.conf")
            return [str(binaries.nats_server()), "-c", config, "-a", address], {}
        if name.startswith("redis"):
            return self._redis(container, address)
        image = {"GRPC_ENABLE_FORK_SUPPORT": "0", "PYTHONSAFEPATH": "1", "HOME": str(self.folder)}
        if name == "cli":
            python = str(python_for("cli", self.environments))
            return [python, "-m", "deepflow.cli.main"], image
        if name == "new-records":
            python = str(python_for("kv-store", self.environments))
            return [python, *container.definition["command"][1:]], image
        python = str(python_for(name, self.environments))
        return [python, "-m", f"services.{name.replace('-', '_')}"], image

    def _redis(self, container: Container, address: str) -> tuple[list[str], dict[str, str]]:
        data, run = self.folder / f"{container.name}-data", self.folder / f"{container.name}-run"
        for made in (data, run):
            made.mkdir(exist_ok=True)
        config = container.source_of("/etc/deepflow/redis.conf")
        image = {
            "PATH": f"{binaries.redis_server().parent}{os.pathsep}{os.environ['PATH']}",
            "REDIS_RUN_FOLDER": str(run),
            "REDIS_DATA_FOLDER": str(data),
            "REDIS_CONFIG": str(COMPOSE / config),
        }
        start = str(COMPOSE / "redis" / "start")
        return ["sh", start, "--bind", address], image

    def _environment(self, container: Container, address: str, replica: str) -> dict[str, str]:
        values = container.environment
        return {key: self._here(value, address, replica) for key, value in values.items()}

    def _here(self, value: str, address: str, replica: str) -> str:
        if value == "0.0.0.0":
            return address
        if value.startswith("127.0.0.1:"):  # the container's own loopback
            return address + value.removeprefix("127.0.0.1")
        for name in sorted(self.addresses, key=len, reverse=True):
            value = re.sub(rf"(?<![\w-]){name}(?=:\d)", self.addresses[name], value)
        return value.replace("{hostname}", replica)


@contextlib.contextmanager
def compose_stack(folder: Path) -> Iterator[ComposeStack]:
    """Nothing runs yet; all that was started is gone afterwards."""
    secrets = folder / "env"
    subprocess.run([str(COMPOSE / "make-secrets"), str(secrets)], check=True, capture_output=True)
    containers = read_containers(read_env(secrets))
    net = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}"
    addresses = {name: f"{net}.{number * 10}" for number, name in enumerate(containers, 1)}
    stack = ComposeStack(folder, folder / "environments", containers, addresses)
    try:
        yield stack
    finally:
        stack.kill()


def _beside(address: str, number: int) -> str:
    net, _, last = address.rpartition(".")
    return f"{net}.{int(last) + number - 1}"
