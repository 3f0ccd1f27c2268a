"""How long the certificates of the stack that runs are valid."""

import datetime
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificates

from deepflow.local.checkup.finding import Finding, fail, fine, warn
from deepflow.local.client import SupervisorClient
from deepflow.local.data_dir import DataDir
from deepflow.local.errors import StackError
from deepflow.local.tls_folder import TlsFolder

DAYS_MIN = 14
_DO = "replace it (docs/security.md, TLS); the public one is taken up without a restart"


def examine_certificates(data: DataDir) -> list[Finding]:
    """Nothing where no stack runs, or one without TLS."""
    root = _folder_in_use(data)
    if not root:
        return []
    tls, now = TlsFolder(Path(root)), datetime.datetime.now(datetime.UTC)
    files = (tls.ca, tls.service.certificate, tls.public.certificate)
    return [judge_certificate(path, *ends_of(path), now) for path in files]


# Facts


def _folder_in_use(data: DataDir) -> str:
    try:
        with SupervisorClient(data) as client:
            return client.ask("describe").get("tls") or ""
    except StackError:
        return ""


def ends_of(path: Path) -> tuple[datetime.datetime | None, str]:
    """When the first of its certificates to end does, or why it cannot be read."""
    try:
        certificates = load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    except ValueError:
        return None, f"{path} holds no PEM certificate"
    return min(it.not_valid_after_utc for it in certificates), ""


# Judgments


def judge_certificate(
    path: Path, ends: datetime.datetime | None, fault: str, now: datetime.datetime
) -> Finding:
    about = "certificate"
    if ends is None:
        return fail(about, fault, _DO)
    left = ends - now
    if left <= datetime.timedelta(0):
        return fail(about, f"{path} expired on {ends:%Y-%m-%d}", _DO)
    says = f"{path} is valid until {ends:%Y-%m-%d}"
    if left < datetime.timedelta(days=DAYS_MIN):
        return warn(about, says, _DO)
    return fine(about, says)
