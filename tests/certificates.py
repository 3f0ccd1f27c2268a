"""Certificates for tests: good ones, and each way in which one can be bad."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from deepflow.clock import unix_ms
from deepflow.local.certificates import create_certificates
from deepflow.local.tls_folder import TlsFolder
from deepflow.tls import CertificateFiles

DAYS = 2


def make_folder(path: Path, *hosts: str) -> TlsFolder:
    folder = TlsFolder(path)
    create_certificates(folder, DAYS, hosts)
    return folder


def serial_of(certificate: Path) -> int:
    return load_pem_x509_certificate(certificate.read_bytes()).serial_number


def replace(files: CertificateFiles, other: CertificateFiles) -> None:
    """As a person renews: the files get new content under their old names."""
    files.certificate.write_bytes(other.certificate.read_bytes())
    files.key.write_bytes(other.key.read_bytes())


def expire(files: CertificateFiles, ca: Path, ca_key: Path) -> None:
    """The same certificate, signed again with a validity that has passed."""
    import datetime

    former = load_pem_x509_certificate(files.certificate.read_bytes())
    authority = load_pem_x509_certificate(ca.read_bytes())
    signer = load_pem_private_key(ca_key.read_bytes(), password=None)
    yesterday = datetime.datetime.fromtimestamp(unix_ms() / 1000, datetime.UTC)
    yesterday -= datetime.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(former.subject)
        .issuer_name(authority.subject)
        .public_key(former.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(yesterday - datetime.timedelta(days=1))
        .not_valid_after(yesterday)
    )
    for extension in former.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    files.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
