"""The folder of a cluster's certificates: which file is what."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from deepflow.config import PREFIX
from deepflow.local.errors import StackError
from deepflow.tls import BadCertificate, CertificateFiles, MeshTls, shake_hands


@dataclass(frozen=True, slots=True)
class TlsFolder:
    """As `deepflow certificates create` makes it."""

    root: Path

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Nothing that runs needs it."""
        return self.root / "ca-key.pem"

    @property
    def service(self) -> CertificateFiles:
        return CertificateFiles(self.root / "service.pem", self.root / "service-key.pem")

    @property
    def public(self) -> CertificateFiles:
        """May be replaced by one that a public CA signed; a folder, so that it can be mounted."""
        own = self.root / "gateway"
        return CertificateFiles(own / "certificate.pem", own / "key.pem")

    def mesh(self) -> MeshTls:
        """Raises StackError."""
        try:
            return MeshTls.read(self.ca, self.service)
        except BadCertificate as error:
            raise StackError(_with_advice(error)) from error

    def check(self) -> None:
        """Before anything starts. Raises StackError."""
        self.mesh()
        try:
            self.public.server_context()
        except BadCertificate as error:
            raise StackError(_with_advice(error)) from error

    def ca_for(self, host: str) -> Path | None:
        """What a client here trusts to reach a gateway; None where another CA signed for it."""
        try:
            client = ssl.create_default_context(cafile=self.ca)
            shake_hands(self.public.server_context(), client, host.strip("[]"))
        except (ssl.SSLError, BadCertificate):
            return None
        return self.ca

    @property
    def mesh_environment(self) -> dict[str, str]:
        return {
            f"{PREFIX}TLS_CA": str(self.ca),
            f"{PREFIX}TLS_CERTIFICATE": str(self.service.certificate),
            f"{PREFIX}TLS_KEY": str(self.service.key),
        }


def _with_advice(error: BadCertificate) -> str:
    return f"{error}; 'deepflow certificates create FOLDER' makes what --tls FOLDER needs"
