"""Settings: one frozen class per service, filled from the environment and one YAML file.

A field `port` of the gateway is looked up, first hit wins, in
    DEEPFLOW_GATEWAY_PORT, DEEPFLOW_PORT, the file's `gateway: {port: …}`, the file's `port: …`
and falls back to its default. DEEPFLOW_CONFIG names the file. A bad value stops start-up with the
key, the value and what would be right.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

PREFIX = "DEEPFLOW_"
CONFIG_FILE_VARIABLE = f"{PREFIX}CONFIG"
HOSTNAME = "{hostname}"
WILDCARDS = ("0.0.0.0", "::", "")
# An id is one word of a NATS subject.
_ID = re.compile(r"[A-Za-z0-9_-]*")


class ConfigError(Exception):
    """Start-up must stop; the message is all that a person needs to mend it."""


class ServiceConfig(BaseModel):
    """What every service can be told; each service adds its own fields below."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)

    id: str = Field(
        "",
        description="Member id; {hostname} in it stands for this machine's name; empty = made at"
        " start.",
    )
    host: str = Field("127.0.0.1", description="Interface to listen on.")
    advertise_host: str = Field(
        "",
        description="Host name that peers connect to; empty = the interface listened on, or this"
        " machine's name where that is every interface.",
    )
    cluster_token: str = Field(
        "", description="Secret shared by all services; guards every gRPC port.", repr=False
    )
    tls_ca: str = Field(
        "",
        description="PEM file of the CA that signed the certificates of all services; with"
        " tls_certificate and tls_key all gRPC is mutual TLS. Empty = plain.",
    )
    tls_certificate: str = Field(
        "", description="PEM file of this service's certificate; read at the start."
    )
    tls_key: str = Field("", description="PEM file of its key.")
    nats_url: str = Field("nats://127.0.0.1:4222", description="Where NATS listens.")
    nats_user: str = Field("", description="NATS user; empty = none.")
    nats_password: str = Field("", description="NATS password.", repr=False)
    kv_store_address: str = Field("127.0.0.1:7102", description="host:port of the kv_store.")
    cluster_manager_address: str = Field(
        "127.0.0.1:7101",
        description="host:port of the cluster manager; of several, separated by commas.",
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="How long running work may take to end after SIGTERM."
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug|info|warning|error."
    )
    log_format: str = Field("json", pattern="^(json|text)$", description="json|text.")
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector for traces (http://host:4318); empty = no export."
    )

    @field_validator("id")
    @classmethod
    def _one_word(cls, id: str) -> str:
        named = id.replace(HOSTNAME, socket.gethostname().replace(".", "-"))
        if not _ID.fullmatch(named):
            raise ValueError("may only hold letters, digits, - and _ (and {hostname})")
        return named

    @property
    def advertised_host(self) -> str:
        """Where peers find this process; nobody can connect to "every interface"."""
        if self.advertise_host:
            return self.advertise_host
        return socket.gethostname() if self.host in WILDCARDS else self.host


class MeshServiceConfig(ServiceConfig):
    """A service that speaks gRPC; health and metrics have a small HTTP port of their own."""

    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 = a free one.")
    health_port: int = Field(
        0, ge=0, le=65535, description="Port of /health, /ready and /metrics; 0 = a free one."
    )


Config = TypeVar("Config", bound=ServiceConfig)


def load(
    kind: type[Config],
    service: str,
    *,
    environ: Mapping[str, str] = os.environ,
    path: Path | None = None,
) -> Config:
    """Read the settings of `service` ("gateway", "job_executor", …)."""
    path = path or (
        Path(environ[CONFIG_FILE_VARIABLE]) if CONFIG_FILE_VARIABLE in environ else None
    )
    document = _read_file(path) if path else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in kind.model_fields:
        for origin, value in _candidates(name, service, environ, document):
            values[name], origins[name] = value, origin
            break
    _refuse_unknown_keys(kind, service, document, path)
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, origins)) from error


def unknown_variables(
    kind: type[ServiceConfig], service: str, environ: Mapping[str, str]
) -> list[str]:
    """Variables that carry this service's prefix and name no setting: worth a warning."""
    prefix = f"{PREFIX}{service.upper()}_"
    # DEEPFLOW_KV_STORE_ADDRESS is everybody's setting, though it begins like the kv_store's own.
    known = {start + name.upper() for name in kind.model_fields for start in (prefix, PREFIX)}
    return sorted(name for name in environ if name.startswith(prefix) and name not in known)


def describe(kind: type[ServiceConfig], service: str) -> str:
    """Every setting with its variable, default and meaning, for --help."""
    lines = []
    for name, info in kind.model_fields.items():
        default = "" if info.repr is False else f" [{info.default!r}]"
        lines.append(f"  {PREFIX}{service.upper()}_{name.upper()}{default}")
        lines.append(f"      {info.description}")
    return "\n".join(lines)


def _candidates(
    name: str, service: str, environ: Mapping[str, str], document: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    for variable in (f"{PREFIX}{service.upper()}_{name.upper()}", f"{PREFIX}{name.upper()}"):
        if variable in environ:
            yield variable, environ[variable]
    section = document.get(service)
    if isinstance(section, dict) and name in section:
        yield f"{service}.{name}", section[name]
    if name in document:
        yield name, document[name]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} must hold a mapping of settings, not a {type(document).__name__}"
        )
    return document


def _refuse_unknown_keys(
    kind: type[ServiceConfig], service: str, document: dict[str, Any], path: Path | None
) -> None:
    section = document.get(service, {})
    if section is None:
        return
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: '{service}' must be a mapping of settings, got {section!r}")
    unknown = sorted(set(section) - set(kind.model_fields))
    if unknown:
        choices = ", ".join(sorted(kind.model_fields))
        raise ConfigError(f"{path}: unknown setting {service}.{unknown[0]}; known are: {choices}")


def _explain(error: ValidationError, kind: type[ServiceConfig], origins: dict[str, str]) -> str:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        info: FieldInfo | None = kind.model_fields.get(name)
        shown = "(hidden)" if info is not None and info.repr is False else repr(item["input"])
        meaning = f" Meaning: {info.description}" if info is not None else ""
        lines.append(f"{origins.get(name, name)} = {shown}: {item['msg']}.{meaning}")
    return "\n".join(lines)
