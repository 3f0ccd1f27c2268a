"""What the supervisor's own HTTP client trusts."""

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deepflow.local import http
from deepflow.local.liveness import HealthPort
from tests.certificates import make_folder
from tests.integration.gateway_support import GatewayStand, gateway_stand


@contextlib.asynccontextmanager
async def https_stand(certificate: Path, key: Path) -> AsyncIterator[GatewayStand]:
    async with gateway_stand(https_certificate=str(certificate), https_key=str(key)) as stand:
        yield stand


async def test_exactly_the_gateways_certificate_is_trusted(tmp_path: Path) -> None:
    ours, theirs = (make_folder(tmp_path / name) for name in ("ours", "theirs"))
    public = ours.public
    async with https_stand(public.certificate, public.key) as stand:
        url = HealthPort(stand.gateway.address, scheme="https").url
        status, body = await http.get(url, certificate=public.certificate)
        assert (status, body["state"]) == (200, "ready")
        for other in (theirs.public.certificate, tmp_path / "missing.pem", public.key):
            with pytest.raises(http.NoAnswer) as failure:
                await http.get(url, certificate=other)
            # It was no hang: nobody is killed for it.
            assert not isinstance(failure.value.__cause__, TimeoutError)
        with pytest.raises(http.NoAnswer):
            await http.get(url.replace("https:", "http:"))


async def test_a_process_that_stands_still_is_a_timeout_over_tls_too(tmp_path: Path) -> None:
    public = make_folder(tmp_path / "tls").public

    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/health"
        with pytest.raises(http.NoAnswer) as failure:
            await http.get(url, 0.3, certificate=public.certificate)
    assert isinstance(failure.value.__cause__, TimeoutError)
