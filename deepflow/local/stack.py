"""What a local stack consists of: which processes, with which commands and environment. Pure."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepflow.config import PREFIX
from deepflow.local import nats_users, redis_users
from deepflow.local.data_dir import DataDir, Ports, Secrets, default_root
from deepflow.local.process import ProcessSpec
from deepflow.local.tls_folder import TlsFolder

LOOPBACK = "127.0.0.1"
MEET_SECONDS_MAX = 5.0
WILDCARDS = ("0.0.0.0", "::", "")
# Each names one process: set for all of them it would make them collide.
_NEVER_INHERITED = ("ID", "PORT", "HEALTH_PORT", "HOST", "ADVERTISE_HOST")
_HTTPS = ("_HTTPS_CERTIFICATE", "_HTTPS_KEY")
# Only the command itself fetches models.
_OTHERS_SECRETS = ("HF_TOKEN",)


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a person chooses."""

    data_dir: Path = field(default_factory=default_root)
    host: str = LOOPBACK
    port: int = 8000
    gateways: int = 1
    job_executors: int = 1
    cluster_managers: int = 1
    # How long a process may take to answer its health port; 0 = nobody asks.
    liveness_seconds: float = 5.0
    # HTTPS at the gateways and mutual TLS between the services; None = neither.
    tls: TlsFolder | None = None

    @property
    def reachable_host(self) -> str:
        """Where this host's own clients find the gateways."""
        host = LOOPBACK if self.host in WILDCARDS else self.host
        return f"[{host}]" if ":" in host else host

    def url(self, port: int) -> str:
        """Of a gateway."""
        return f"{self.gateway_scheme}://{self.reachable_host}:{port}"

    @property
    def gateway_scheme(self) -> str:
        return "http" if self.tls is None else "https"

    @property
    def gateway_certificate(self) -> Path | None:
        """What this host's own clients trust, under whatever name: it is the gateways' own."""
        return None if self.tls is None else self.tls.public.certificate


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack in one data folder."""

    options: StackOptions
    data: DataDir
    secrets: Secrets
    ports: Ports
    inherited: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def kv_store_address(self) -> str:
        return f"{LOOPBACK}:{self.ports.kv_store}"

    @property
    def cluster_manager_address(self) -> str:
        """Of all of them, separated by commas: one leads."""
        ports = (self.ports.cluster_manager, *self.ports.standbys[::2])
        return ",".join(f"{LOOPBACK}:{port}" for port in ports)

    @property
    def nats_url(self) -> str:
        return f"nats://{LOOPBACK}:{self.ports.nats}"

    @property
    def environment(self) -> dict[str, str]:
        """What every service of this stack is told."""
        unwanted = {PREFIX + name for name in _NEVER_INHERITED} | set(_OTHERS_SECRETS)
        ours = {
            "CLUSTER_TOKEN": self.secrets.cluster_token,
            "NATS_URL": self.nats_url,
            "KV_STORE_ADDRESS": self.kv_store_address,
            "CLUSTER_MANAGER_ADDRESS": self.cluster_manager_address,
        }
        # A task executor forks with gRPC's threads running; gRPC must not act on that.
        others = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        kept = {k: v for k, v in self.inherited.items() if k not in unwanted}
        return {k: v for k, v in kept.items() if not _is_about_tls(k)} | {
            **others,
            **({} if self.options.tls is None else self.options.tls.mesh_environment),
            **{PREFIX + name: value for name, value in ours.items()},
        }

    def embedded(self, name: str, command: tuple[str, ...]) -> ProcessSpec:
        """NATS or Redis: told nothing but what their configuration says."""
        environment = {
            k: v
            for k, v in self.inherited.items()
            if not k.startswith(PREFIX) and k not in _OTHERS_SECRETS
        }
        return ProcessSpec(name, name, command, environment, self.data.log_file(name))

    def service(self, service: str, name: str, settings: Mapping[str, Any]) -> ProcessSpec:
        prefix = f"{PREFIX}{service.upper()}_"
        own = {"ID": name} | {key.upper(): _text(value) for key, value in settings.items()}
        return ProcessSpec(
            name=name,
            service=service,
            # -P: a folder called services where the person happens to stand is none of ours.
            command=(sys.executable, "-P", "-m", f"services.{service}"),
            environment=self.environment
            | self._nats_credentials(service)
            | {prefix + key: value for key, value in own.items()},
            log_file=self.data.log_file(name),
        )

    def _nats_credentials(self, service: str) -> dict[str, str]:
        """Its own user's: in its environment, where no other user of this host can read it."""
        user = nats_users.SERVICES[service]
        return {
            f"{PREFIX}NATS_USER": user.name,
            f"{PREFIX}NATS_PASSWORD": nats_users.password_of(user, self.secrets.nats_password),
        }

    def kv_store(self, *, initialise: bool) -> ProcessSpec:
        """`initialise` only where Redis is known to be new: later, empty means lost."""
        settings = {
            "port": self.ports.kv_store,
            "health_port": self.ports.kv_store_health,
            "redis_url": f"redis://{redis_users.KV_STORE}@{LOOPBACK}:{self.ports.redis}/0",
            "redis_password": redis_users.kv_store_password(self.secrets.redis_password),
            "initialise": initialise,
        }
        return self.service("kv_store", "kv-store", settings)

    def cluster_managers(self) -> list[ProcessSpec]:
        """The first is called cluster-manager, the next cluster-manager-1."""
        ports = (self.ports.cluster_manager, self.ports.cluster_manager_health)
        pairs = [ports, *zip(self.ports.standbys[::2], self.ports.standbys[1::2], strict=True)]
        return [self._cluster_manager(index, *pair) for index, pair in enumerate(pairs)]

    def _cluster_manager(self, index: int, port: int, health_port: int) -> ProcessSpec:
        settings = {
            "port": port,
            "health_port": health_port,
            "job_executors": self.options.job_executors,
            "gateways": self.options.gateways,
            "driver": "local",
            "supervisor_socket": str(self.data.socket),
        }
        name = f"cluster-manager-{index}" if index else "cluster-manager"
        return self.service("cluster_manager", name, settings)

    @property
    def health_ports(self) -> dict[str, str]:
        """host:port that answers /health, of those whose port is known before they start."""
        managers = (self.ports.cluster_manager_health, *self.ports.standbys[1::2])
        names = [spec.name for spec in self.cluster_managers()]
        return {
            "kv-store": f"{LOOPBACK}:{self.ports.kv_store_health}",
            **{name: f"{LOOPBACK}:{port}" for name, port in zip(names, managers, strict=True)},
        }

    def gateway(self, name: str, port: int) -> ProcessSpec:
        host = self.options.host
        settings: dict[str, Any] = {"host": host, "port": port}
        settings["meet_seconds_max"] = MEET_SECONDS_MAX
        if host in WILDCARDS:
            settings["advertise_host"] = LOOPBACK
        if self.options.tls is not None:
            public = self.options.tls.public
            settings |= {"https_certificate": public.certificate, "https_key": public.key}
        return self.service("gateway", name, settings)


def _is_about_tls(variable: str) -> bool:
    """All of a stack agree on it, and `--tls` says what."""
    own = variable.startswith(PREFIX)
    return own and variable.endswith(("_TLS_CA", "_TLS_CERTIFICATE", "_TLS_KEY", *_HTTPS))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
