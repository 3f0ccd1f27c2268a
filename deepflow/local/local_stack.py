"""One local stack, composed: its folder, its supervisor with all processes, its socket."""

import asyncio
import logging
import os
import platform
from typing import Any

from deepflow import __version__, background
from deepflow.errors import InvalidRequest, Unavailable
from deepflow.local.data_dir import DataDir
from deepflow.local.gateways import Gateways, gateway_name
from deepflow.local.liveness import HealthPort, LivenessProbe
from deepflow.local.paths import check_socket_path
from deepflow.local.ports import require_free
from deepflow.local.process import ProcessSpec, open_log
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
        if self.options.tls is not None:
            self.options.tls.check()
        check_socket_path(self.data.socket)
        self.data.acquire(self.options.url(self.options.port))
        require_free(self.options.host, [self.options.port])
        stack = Stack(
            self.options,
            self.data,
            self.data.read_secrets(),
            self.data.choose_ports(self.options.cluster_managers, besides=self.options.port),
        )
        commands = {
            "nats": nats_command(self.data, stack.ports, stack.secrets),
            "redis": redis_command(self.data, stack.ports, stack.secrets),
        }
        self._log_to_file()
        self._stack = stack
        self._gateways = Gateways(stack, self.supervisor)
        self.has_started = True
        for name, command in commands.items():
            self.supervisor.start(stack.embedded(name, command))
        self.supervisor.start(stack.kv_store(initialise=self.data.is_new_record_space))
        await self._listen(stack)
        for cluster_manager in stack.cluster_managers():
            self.supervisor.start(cluster_manager)
        # The cluster manager finds them there, and keeps as many from now on.
        for index in range(self.options.gateways):
            self.supervisor.start(self._gateways.spec(gateway_name(index)))

    def connect(self) -> None:
        """Become a client of the cluster; late, because gRPC takes its time to import."""
        from deepflow import rpc
        from deepflow.local.cluster import ClusterLink

        tls = self.options.tls
        rpc.speak_tls(None if tls is None else tls.mesh())
        self._cluster = ClusterLink(self._stack)
        if self.options.liveness_seconds:
            probe = LivenessProbe(
                self.supervisor,
                self._health_ports,
                self.options.liveness_seconds,
                self.options.gateway_certificate,
            )
            self._probing = asyncio.create_task(probe.run())

    async def bring_up(self, model: ModelChoice, steps: Steps, reporter: Reporter) -> bool:
        """Returns when the model answers: whether it can chat. Raises StartupFailed."""
        from deepflow.local.readiness import Readiness

        readiness = Readiness(
            self._stack,
            self.supervisor,
            self._cluster,
            self._gateways,
            steps=steps,
            reporter=reporter,
        )
        await readiness.follow(model)
        self.makes_embeddings = readiness.makes_embeddings
        return readiness.has_chat_template

    async def stop(self) -> None:
        """Also after a start that failed half-way, and after `kill`."""
        await background.end(self._probing)
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
            {it.spec.name: it.spec.service for it in self.supervisor.all()}
        )
        return heard | known

    async def _listen(self, stack: Stack) -> None:
        face = Face(
            supervisor=self.supervisor,
            launch=self._launch,
            describe=self._describe,
            cluster=self._describe_cluster,
            request_shutdown=self.stop_requested.set,
        )
        self._socket = ControlSocket(self.data.socket, face)
        await self._socket.start()

    def _launch(self, service: str, name: str, settings: dict[str, Any]) -> ProcessSpec:
        if service != "gateway":
            return self._stack.service(service, name, settings)
        if settings:
            raise InvalidRequest("a gateway is started as this stack's options say: no settings")
        return self._gateways.spec(name)

    @property
    def urls(self) -> list[str]:
        """Of the gateways that there are now."""
        return list(self._gateways.urls.values())

    def _describe(self) -> dict[str, Any]:
        """Where everything is; secrets stay where they are."""
        stack = self._stack
        return {
            "gateways": self.urls,
            "cluster_manager": stack.cluster_manager_address,
            "kv_store": stack.kv_store_address,
            "nats": stack.nats_url,
            "data_dir": str(self.data.root),
            "log_dir": str(self.data.logs),
            "tls": None if self.options.tls is None else str(self.options.tls.root),
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
