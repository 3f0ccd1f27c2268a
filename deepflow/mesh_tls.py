"""The settings of mutual TLS between services: three files, or none."""

from collections.abc import Mapping
from pathlib import Path

from deepflow.config import PREFIX, ConfigError, ServiceConfig
from deepflow.tls import BadCertificate, CertificateFiles, MeshTls

NAMES = ("tls_ca", "tls_certificate", "tls_key")


def mesh_tls(config: ServiceConfig) -> MeshTls | None:
    """None where nothing is set. Raises ConfigError that names the setting."""
    return read_mesh_tls({name: getattr(config, name) for name in NAMES})


def mesh_tls_of(environ: Mapping[str, str]) -> MeshTls | None:
    """For a command that is no service and reads the same variables."""
    return read_mesh_tls({name: environ.get(_variable(name), "") for name in NAMES})


def read_mesh_tls(values: Mapping[str, str]) -> MeshTls | None:
    missing = [name for name in NAMES if not values[name]]
    if len(missing) == len(NAMES):
        return None
    if missing:
        raise ConfigError(
            f"{_variable(missing[0])} is not set: {', '.join(map(_variable, NAMES))} belong"
            " together, all of them or none"
        )
    ca, certificate, key = (Path(values[name]) for name in NAMES)
    try:
        return MeshTls.read(ca, CertificateFiles(certificate, key))
    except BadCertificate as error:
        raise ConfigError(f"{', '.join(map(_variable, NAMES))}: {error}") from error


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"
