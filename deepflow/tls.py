"""Certificates on disk: read, proved by a handshake in memory, and made into what servers use.

Whatever may be wrong with a certificate (expired, another's key, another CA, the wrong name or
purpose) is found at start, by shaking hands with ourselves as a client would.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Every service of a cluster shows a certificate with this name, whatever its address is.
SERVICE_NAME = "service.deepflow.internal"
_FIRST_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL
)
_MESSAGES_MAX = 10  # a handshake takes three


class BadCertificate(Exception):
    """A sentence that names the file."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A certificate, with its chain, and its key; both PEM."""

    certificate: Path
    key: Path

    @property
    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Differs when a file was replaced or written. Raises OSError where one is gone."""
        stats = [path.stat() for path in (self.certificate, self.key)]
        return tuple((it.st_ino, it.st_mtime_ns, it.st_size) for it in stats)

    def server_context(self) -> ssl.SSLContext:
        """For HTTPS, proved. Raises BadCertificate."""
        context = self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.set_alpn_protocols(["http/1.1"])
        _prove(self.certificate, context, trust_exactly(self.certificate), None)
        return context

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in (self.certificate, self.key):
            read_pem(path)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise BadCertificate(
                f"{self.certificate} and {self.key} are no certificate and its key, in PEM and"
                f" without a password ({error.reason or error})"
            ) from error
        return context


@dataclass(frozen=True, slots=True)
class MeshTls:
    """What a process needs to speak mutual TLS with the services of its cluster."""

    ca: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, ca: Path, files: CertificateFiles) -> "MeshTls":
        """Proved from both ends. Raises BadCertificate."""
        server = files._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        client = files._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        server.verify_mode = ssl.CERT_REQUIRED
        for context in (server, client):
            _trust(context, ca)
        _prove(files.certificate, server, client, SERVICE_NAME)
        return cls(*(read_pem(it) for it in (ca, files.certificate, files.key)))


def read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"cannot read {path}: {error.strerror}") from error


def trust_exactly(certificate: Path) -> ssl.SSLContext:
    """For a client that has the server's own certificate: that one, under whatever name.

    Only the first of the file is trusted; the rest may be an authority that signs for others, too.
    """
    first = _FIRST_CERTIFICATE.search(read_pem(certificate).decode(errors="replace"))
    if first is None:
        raise BadCertificate(f"{certificate} holds no PEM certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=first.group())
    except ssl.SSLError as error:
        raise BadCertificate(f"{certificate} holds no PEM certificate") from error
    return context


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    read_pem(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise BadCertificate(f"{ca} holds no PEM certificate of a CA") from error


def _prove(
    certificate: Path, server: ssl.SSLContext, client: ssl.SSLContext, name: str | None
) -> None:
    try:
        shake_hands(server, client, name)
    except ssl.SSLCertVerificationError as error:
        raise BadCertificate(f"{certificate} would be refused: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise BadCertificate(f"{certificate} cannot be used: {error.reason}") from error


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None
) -> Mapping[str, Any]:
    """In memory; what the client learns of the server's certificate. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_MESSAGES_MAX):
        waiting = [end for end in ends if not _advance(end)]
        if not waiting:
            return ends[0].getpeercert() or {}
    raise ssl.SSLError("the handshake does not end")


def _advance(end: ssl.SSLObject) -> bool:
    """Whether this end is through."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
