"""Certificates are proved before they are used; settings belong together."""

import itertools
import ssl
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepflow.config import ConfigError, ServiceConfig
from deepflow.local.certificates import create_certificates, general_name
from deepflow.local.errors import StackError
from deepflow.local.tls_folder import TlsFolder
from deepflow.mesh_tls import mesh_tls, mesh_tls_of, read_mesh_tls
from deepflow.tls import (
    SERVICE_NAME,
    BadCertificate,
    CertificateFiles,
    MeshTls,
    shake_hands,
    trust_exactly,
)
from tests.certificates import DAYS, expire, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> TlsFolder:
    return make_folder(tmp_path / "tls", "llm.example.com", "10.1.2.3")


@pytest.fixture
def stranger(tmp_path: Path) -> TlsFolder:
    return make_folder(tmp_path / "stranger")


def test_what_is_made_can_be_used_and_read_by_its_owner_only(folder: TlsFolder) -> None:
    folder.check()
    files = [path for path in folder.root.rglob("*") if path.is_file()]
    assert (len(files), {stat.S_IMODE(it.stat().st_mode) for it in files}) == (6, {0o600})
    for made in (folder.root, folder.public.key.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "::1", "llm.example.com", "10.1.2.3", "elsewhere.example"]
)
def test_the_public_certificate_is_for_its_hosts(folder: TlsFolder, name: str) -> None:
    client = ssl.create_default_context(cafile=str(folder.ca))
    if name != "elsewhere.example":
        names = shake_hands(folder.public.server_context(), client, name)["subjectAltName"]
        assert ("DNS", "llm.example.com") in names
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shake_hands(folder.public.server_context(), client, name)


def test_nothing_is_overwritten(folder: TlsFolder) -> None:
    before = folder.ca_key.read_bytes()
    for path in (folder.ca, folder.public.certificate):
        path.unlink()
        with pytest.raises(StackError, match="never overwritten"):
            create_certificates(folder, DAYS)
        assert not path.exists()
    assert folder.ca_key.read_bytes() == before


def test_exactly_the_certificate_is_trusted(folder: TlsFolder, stranger: TlsFolder) -> None:
    server = folder.public.server_context()
    assert shake_hands(server, trust_exactly(folder.public.certificate), "any.name")
    # A CA that follows in the file signs for others, too.
    chain = stranger.public.certificate
    chain.write_bytes(chain.read_bytes() + folder.ca.read_bytes())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, trust_exactly(chain), "localhost")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mine, other: mine.public.key.unlink(), r"cannot read .*gateway/key\.pem"),
        (
            lambda mine, other: mine.public.certificate.write_text("hello"),
            r"gateway/certificate\.pem",
        ),
        (lambda mine, other: mine.public.key.write_bytes(other.public.key.read_bytes()), "no cert"),
        (lambda mine, other: expire(mine.public, mine.ca, mine.ca_key), "has expired"),
    ],
    ids=["missing", "no PEM", "another's key", "expired"],
)
def test_a_bad_public_certificate_is_refused(
    folder: TlsFolder, stranger: TlsFolder, spoil: object, words: str
) -> None:
    spoil(folder, stranger)  # type: ignore[operator]
    with pytest.raises(BadCertificate, match=words):
        folder.public.server_context()
    with pytest.raises(StackError, match="certificates create"):
        folder.check()


def test_a_service_certificate_of_another_kind_is_refused(
    folder: TlsFolder, stranger: TlsFolder
) -> None:
    with pytest.raises(BadCertificate, match=r"unable to get local issuer|self-signed"):
        MeshTls.read(stranger.ca, folder.service)
    # It is for servers, and has not the services' name.
    with pytest.raises(BadCertificate):
        MeshTls.read(folder.ca, folder.public)
    expire(folder.service, folder.ca, folder.ca_key)
    with pytest.raises(BadCertificate, match="expired"):
        MeshTls.read(folder.ca, folder.service)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(folder: TlsFolder) -> None:
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_pem_private_key(folder.public.key.read_bytes(), password=None)
    locked = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
    )
    folder.public.key.write_bytes(locked)
    with pytest.raises(BadCertificate, match="without a password"):
        folder.public.server_context()


def test_settings_belong_together(folder: TlsFolder) -> None:
    values = {
        "tls_ca": str(folder.ca),
        "tls_certificate": str(folder.service.certificate),
        "tls_key": str(folder.service.key),
    }
    assert mesh_tls(ServiceConfig()) is None and mesh_tls_of({}) is None
    assert mesh_tls(ServiceConfig(**values)) == folder.mesh()
    assert mesh_tls_of(folder.mesh_environment) == folder.mesh()
    for count in (1, 2):
        for absent in itertools.combinations(values, count):
            with pytest.raises(ConfigError, match=f"DEEPFLOW_{absent[0].upper()} is not set"):
                read_mesh_tls(values | dict.fromkeys(absent, ""))
    with pytest.raises(ConfigError, match=r"DEEPFLOW_TLS_CA.*cannot read /nowhere"):
        read_mesh_tls(values | {"tls_ca": "/nowhere"})


def test_files_that_change_have_another_stamp(folder: TlsFolder, stranger: TlsFolder) -> None:
    before = folder.public.stamp
    assert folder.public.stamp == before
    folder.public.key.write_bytes(stranger.public.key.read_bytes() + b"\n")
    assert folder.public.stamp != before
    with pytest.raises(FileNotFoundError):
        _ = CertificateFiles(folder.root / "no", folder.public.key).stamp


@pytest.mark.parametrize("host", ["", "a b", "-a", "a-.b", "a..b", "https://a", "a" * 64, "ä.de"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        general_name(host)


@given(
    st.from_regex(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,9}){0,3}", fullmatch=True)
)
def test_host_names_are_kept(host: str) -> None:
    assert general_name(host).value == host


def test_the_services_name_is_nobody_elses(folder: TlsFolder) -> None:
    server = folder.public.server_context()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, ssl.create_default_context(cafile=str(folder.ca)), SERVICE_NAME)
