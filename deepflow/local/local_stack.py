"""One local stack, composed: its folder, its supervisor with all processes, its socket."""

import asyncio
import logging
import os
import platform
from typing import Any

from deepflow import __version__
from deepflow.errors import Unavailable
from deepflow.local.data_dir import DataDir
from deepflow.local.liveness import HealthPort, LivenessProbe
from deepflow.local.paths import check_socket_path
from deepflow.local.ports import require_free
from deepflow.local.process import open_log
from deepflow.local.progress import ModelChoice, Reporter, Steps
from deepflow.local.servers import nats_command, redis_command
from deepflow.local.socket import ControlSocket, Face
from deepflow.local.stack import Stack, StackOptions
from deepflow.local.supervisor import Supervisor
from deepflow.telemetry import JsonFormatter

log = logging.getLogger(__name__)


class LocalStack:
    def __init__(self, options: StackOptions) -> None:
        self.options = options
        self.data = DataDir(options.data_dir)
        self.supervisor = Supervisor()
        self.stop_requested = asyncio.Event()
        self.has_started = False
        self.was_killed = False
        self.makes_embeddings = False  # instead of text, once the model is known
        self._socket: ControlSocket | None = None
        self._cluster: Any = None  # a ClusterLink, once gRPC is imported
        self._probing: asyncio.Task[None] | None = None
        self._log_handler: logging.Handler | None = None

    async def start(self) -> None:
        """Spawns everything at once; services wait for one another. Raises StackError."""
        check_socket_path(self.data.socket)
        self.data.acquire(self.options.urls[0])
        require_free(self.options.host, self.options.gateway_ports)
        stack = Stack(
            self.options,
            self.data,
            self.data.read_secrets(),
            self.data.choose_ports(self.options.cluster_managers),
        )
        commands = {
            "nats": nats_command(self.data, stack.ports, stack.secrets),
            "redis": redis_command(self.data, stack.ports, stack.secrets),
        }
        self._log_to_file()
        self._stack = stack
        self.has_started = True
        for name, command in commands.items():
            self.supervisor.start(stack.embedded(name, command))
        self.supervisor.start(stack.kv_store(initialise=self.data.is_new_record_space))
        await self._listen(stack)
        for cluster_manager in stack.cluster_managers():
            self.supervisor.start(cluster_manager)
        for gateway in stack.gateways():
            self.supervisor.start(gateway)

    def connect(self) -> None:
        """Become a client of the cluster; late, because gRPC takes its time to import."""
        from deepflow.local.cluster import ClusterLink

        self._cluster = ClusterLink(self._stack)
        if self.options.liveness_seconds:
            probe = LivenessProbe(
                self.supervisor, self._health_ports, self.options.liveness_seconds
            )
            self._probing = asyncio.create_task(probe.run())

    async def bring_up(self, model: ModelChoice, steps: Steps, reporter: Reporter) -> bool:
        """Returns when the model answers: whether it can chat. Raises StartupFailed."""
        from deepflow.local.readiness import Readiness

        readiness = Readiness(
            self._stack, self.supervisor, self._cluster, steps=steps, reporter=reporter
        )
        await readiness.follow(model)
        self.makes_embeddings = readiness.makes_embeddings
        return readiness.has_chat_template

    async def stop(self) -> None:
        """Also after a start that failed half-way, and after `kill`."""
        if self._probing is not None:
            self._probing.cancel()
        if self._cluster is not None:
            await self._cluster.close()
        await self.supervisor.shutdown()
        if self._socket is not None:
            await self._socket.close()
        if self._log_handler is not None:
            logging.getLogger().removeHandler(self._log_handler)
            self._log_handler.close()
        self.data.release()

    def request_stop(self) -> None:
        """The first time everything drains; the second time everything is killed."""
        if self.stop_requested.is_set():
            self.was_killed = True
            self.supervisor.kill()
        self.stop_requested.set()

    def _health_ports(self) -> dict[str, HealthPort]:
        known = {name: HealthPort(it) for name, it in self._stack.health_ports.items()}
        heard: dict[str, HealthPort] = self._cluster.health_ports(
            {process.spec.name for process in self.supervisor.all()}
        )
        return heard | known

    async def _listen(self, stack: Stack) -> None:
        face = Face(
            supervisor=self.supervisor,
            launch=stack.service,
            describe=self._describe,
            cluster=self._describe_cluster,
            request_shutdown=self.stop_requested.set,
        )
        self._socket = ControlSocket(self.data.socket, face)
        await self._socket.start()

    def _describe(self) -> dict[str, Any]:
        """Where everything is; secrets stay where they are."""
        stack = self._stack
        return {
            "gateways": self.options.urls,
            "cluster_manager": stack.cluster_manager_address,
            "kv_store": stack.kv_store_address,
            "nats": stack.nats_url,
            "data_dir": str(self.data.root),
            "log_dir": str(self.data.logs),
            "supervisor_pid": os.getpid(),
            "versions": {"deepflow": __version__, "python": platform.python_version()},
        }

    async def _describe_cluster(self) -> dict[str, Any]:
        if self._cluster is None:
            raise Unavailable("the stack is only just starting: ask again in a second")
        description: dict[str, Any] = await self._cluster.describe()
        return description

    def _log_to_file(self) -> None:
        """What the supervisor itself has to say; the screen belongs to the person."""
        output = open_log(self.data.log_file("supervisor"))
        output.close()
        handler = logging.FileHandler(self.data.log_file("supervisor"))
        handler.setFormatter(JsonFormatter("supervisor", "supervisor"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        self._log_handler = handler
