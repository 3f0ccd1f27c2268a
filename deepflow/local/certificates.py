"""A small CA of a cluster's own, and the certificates that it signs."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deepflow.local.errors import StackError
from deepflow.local.tls_folder import TlsFolder
from deepflow.tls import SERVICE_NAME

# Clocks of hosts differ.
BACKDATED = datetime.timedelta(hours=1)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

_Usages = Sequence[x509.ObjectIdentifier]


@dataclass(frozen=True, slots=True)
class _Signed:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_certificates(folder: TlsFolder, days: int, hosts: Sequence[str] = ()) -> None:
    """A CA, a certificate that all services share and one for the public port.

    Raises StackError where a file is there already, and ValueError for a host that is none.
    """
    names = [general_name(host) for host in dict.fromkeys((*LOCAL_HOSTS, *hosts))]
    authority = _make_authority(days)
    both = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    service = _sign(authority, "DeepFlow service", [x509.DNSName(SERVICE_NAME)], both, days)
    # For servers only: whoever has the public port's key is no service of the cluster.
    public = _sign(authority, "DeepFlow gateway", names, both[:1], days)
    _write(
        folder,
        {
            folder.ca_key: _key_pem(authority.key),
            folder.service.key: _key_pem(service.key),
            folder.public.key: _key_pem(public.key),
            folder.service.certificate: _pem(service.certificate),
            folder.public.certificate: _pem(public.certificate),
            folder.ca: _pem(authority.certificate),
        },
    )


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if len(host) > 253 or not all(_is_label(label) for label in labels):
        raise ValueError(f"{host!r} is no host name and no IP address")
    return x509.DNSName(host.lower())


def _is_label(label: str) -> bool:
    is_word = label.isascii() and label.replace("-", "a").isalnum()
    return is_word and len(label) <= 63 and label[0] != "-" and label[-1] != "-"


def _make_authority(days: int) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("DeepFlow cluster CA")
    builder = _builder(name, name, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs=True), critical=True)
    return _Signed(builder.sign(key, hashes.SHA256()), key)


def _sign(
    authority: _Signed, title: str, names: Sequence[x509.GeneralName], usages: _Usages, days: int
) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    builder = _builder(_name(title), issuer, key, days)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    for extension, is_critical in (
        (x509.SubjectAlternativeName(names), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs=False), True),
        (x509.ExtendedKeyUsage(usages), False),
        (by, False),
    ):
        builder = builder.add_extension(extension, critical=is_critical)
    return _Signed(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(title: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(folder: TlsFolder, files: dict[Path, bytes]) -> None:
    present = [path for path in files if path.exists()]
    if present:
        raise StackError(
            f"{present[0]} is there already and is never overwritten: name another folder"
        )
    try:
        for path, content in files.items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Exclusive: nothing that appeared meanwhile is overwritten either.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as output:
                output.write(content)
    except OSError as error:
        raise StackError(f"cannot write to {folder.root}: {error.strerror}") from error
