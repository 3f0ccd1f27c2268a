"""The public port over TLS: real handshakes, the real openai client, renewal, and bad guests."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop

from deepflow.config import ConfigError
from deepflow.local.tls_folder import TlsFolder
from services.gateway.config import GatewayConfig
from services.gateway.http.https import public_certificate
from tests.certificates import expire, make_folder, replace, serial_of
from tests.integration.gateway_support import (
    DEADLINE_SECONDS,
    MODEL,
    WORDS,
    FakeJobExecutor,
    GatewayStand,
    chat,
    gateway_stand,
)
from tests.servers import until

Run = Callable[[Coroutine[Any, Any, None]], None]
# The gateway runs on uvloop; asyncio's own TLS is another implementation.
each_loop = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
SECONDS = DEADLINE_SECONDS


@pytest.fixture
def folder(tmp_path: Path) -> TlsFolder:
    return make_folder(tmp_path / "tls")


def https_stand(
    folder: TlsFolder, **settings: Any
) -> contextlib.AbstractAsyncContextManager[GatewayStand]:
    files = folder.public
    return gateway_stand(
        FakeJobExecutor(),
        https_certificate=str(files.certificate),
        https_key=str(files.key),
        **settings,
    )


def trusting(folder: TlsFolder) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder.ca))


def trusting_client(verify: ssl.SSLContext | bool) -> httpx.AsyncClient:
    # A connection is kept however long nobody uses it.
    limits = httpx.Limits(keepalive_expiry=None)
    return httpx.AsyncClient(verify=verify, timeout=SECONDS, limits=limits)


def url(stand: GatewayStand) -> str:
    return f"https://127.0.0.1:{stand.port}"


async def shown_serial(stand: GatewayStand) -> int:
    """Of the certificate that a new connection is shown, whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", stand.port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.transport.abort()
    from cryptography.x509 import load_der_x509_certificate

    return load_der_x509_certificate(shown).serial_number


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


async def hears_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(SECONDS):
            return await reader.read()
    except ConnectionError:
        return b""


async def decrypted(
    tls: ssl.SSLObject, incoming: ssl.MemoryBIO, reader: asyncio.StreamReader
) -> bytes:
    """The first that there is to read."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return tls.read()
            except ssl.SSLWantReadError:
                incoming.write(await reader.read(65536))


@each_loop
def test_the_openai_client_over_https(run: Run, folder: TlsFolder) -> None:
    async def scenario() -> None:
        async with (
            https_stand(folder) as stand,
            openai.DefaultAsyncHttpxClient(verify=trusting(folder)) as http,
            openai.AsyncOpenAI(
                base_url=f"{url(stand)}/v1", api_key="none", max_retries=0, http_client=http
            ) as client,
        ):
            messages: Any = [{"role": "user", "content": "hi"}]
            whole = await client.chat.completions.create(model=MODEL, messages=messages)
            assert whole.choices[0].message.content == "".join(WORDS)
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, stream=True
            )
            pieces = [it.choices[0].delta.content or "" async for it in stream if it.choices]
            assert "".join(pieces) == "".join(WORDS)

    run(scenario())


@each_loop
def test_a_request_that_comes_with_the_end_of_the_handshake(run: Run, folder: TlsFolder) -> None:
    """As TLS 1.3 allows: nothing of it may get lost between handshake and protocol."""

    async def scenario() -> None:
        async with https_stand(folder) as stand:
            reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting(folder).wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65536))
            tls.write(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            writer.write(outgoing.read())  # our last message of the handshake, and the request
            assert (await decrypted(tls, incoming, reader)).startswith(b"HTTP/1.1 200 OK")
            writer.transport.abort()

    run(scenario())


async def test_what_was_agreed(folder: TlsFolder) -> None:
    context = trusting(folder)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with https_stand(folder) as stand:
        _, writer = await asyncio.open_connection("127.0.0.1", stand.port, ssl=context)
        agreed = writer.get_extra_info("ssl_object")
        assert (agreed.selected_alpn_protocol(), agreed.version()) == ("http/1.1", "TLSv1.3")
        writer.transport.abort()
        strangers: tuple[Any, ...] = (True, make_folder(folder.root / "other"))
        for verify in (strangers[0], trusting(strangers[1])):
            async with trusting_client(verify) as http:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await http.get(f"{url(stand)}/health")


@each_loop
def test_who_speaks_no_tls_is_hung_up_on_and_hurts_nobody(run: Run, folder: TlsFolder) -> None:
    async def scenario() -> None:
        async with (
            https_stand(folder) as stand,
            trusting_client(trusting(folder)) as http,
        ):
            for guest in (b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01" + b"x" * 999):
                reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
                writer.write(guest)
                assert not (await hears_the_end(reader)).startswith(b"HTTP/1.1 200")
                writer.transport.abort()
            assert (await http.get(f"{url(stand)}/health")).status_code == 200
            answer = await http.post(f"{url(stand)}/v1/chat/completions", json=chat())
            assert answer.status_code == 200

    run(scenario())


@each_loop
def test_handshakes_under_way_count_as_connections(run: Run, folder: TlsFolder) -> None:
    async def scenario() -> None:
        async with https_stand(folder, connections_max=2, handshake_seconds_max=600) as stand:
            silent = [await asyncio.open_connection("127.0.0.1", stand.port) for _ in range(3)]
            ends = [asyncio.create_task(hears_the_end(reader)) for reader, _ in silent]
            await ends[2]  # no room for it
            assert not ends[0].done() and not ends[1].done()
            for _, writer in silent:
                writer.transport.abort()
            await asyncio.gather(*ends)

    run(scenario())


@each_loop
def test_a_stalled_handshake_ends(run: Run, folder: TlsFolder) -> None:
    async def scenario() -> None:
        async with https_stand(folder, connections_max=2, handshake_seconds_max=0.2) as stand:
            silent = [await asyncio.open_connection("127.0.0.1", stand.port) for _ in range(2)]
            await asyncio.gather(*(hears_the_end(reader) for reader, _ in silent))
            async with trusting_client(trusting(folder)) as http:

                async def is_let_in() -> bool:
                    """Its own handshake has no more time than those of the silent."""
                    with contextlib.suppress(httpx.TransportError):
                        return (await http.get(f"{url(stand)}/health")).status_code == 200
                    return False

                await until(is_let_in, what="room for somebody else")
            for _, writer in silent:
                writer.transport.abort()

    run(scenario())


@each_loop
def test_who_is_in_a_handshake_when_the_gateway_drains_is_answered(
    run: Run, folder: TlsFolder
) -> None:
    async def scenario() -> None:
        async with https_stand(folder) as stand:
            early = socket.create_connection(("127.0.0.1", stand.port))
            early.setblocking(False)
            server = stand.gateway._listener._https
            assert server is not None
            await until(lambda: server.handshakes == 1, what="its handshake has begun")
            draining = asyncio.create_task(stand.gateway.drain())
            await until(lambda: is_refused(stand.port), what="nobody else gets in")
            assert not draining.done()
            reader, writer = await asyncio.open_connection(
                sock=early, ssl=trusting(folder), server_hostname="localhost"
            )
            writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = await hears_the_end(reader)
            assert answer.startswith(b"HTTP/1.1 ") and b"draining" in answer
            writer.close()
            async with asyncio.timeout(SECONDS):
                await draining

    run(scenario())


async def test_a_gateway_ends_with_a_handshake_under_way(folder: TlsFolder) -> None:
    async with https_stand(folder, handshake_seconds_max=600) as stand:
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        await asyncio.sleep(0)
    await hears_the_end(reader)
    writer.transport.abort()


@each_loop
def test_a_renewed_certificate_is_shown_to_new_connections(run: Run, folder: TlsFolder) -> None:
    renewed = make_folder(folder.root / "renewed")

    async def scenario() -> None:
        async with (
            https_stand(folder) as stand,
            trusting_client(trusting(folder)) as http,
        ):
            assert (await http.get(f"{url(stand)}/health")).status_code == 200
            replace(folder.public, renewed.public)
            expected = serial_of(renewed.public.certificate)

            async def is_shown() -> bool:
                return await shown_serial(stand) == expected

            async with asyncio.timeout(SECONDS):
                while True:
                    if await is_shown():
                        break
                    await asyncio.sleep(0.05)
            # Who was here before goes on.
            assert (await http.get(f"{url(stand)}/health")).status_code == 200
            async with trusting_client(trusting(renewed)) as fresh:
                assert (await fresh.get(f"{url(stand)}/health")).status_code == 200

    run(scenario())


async def test_a_broken_renewal_keeps_the_former(
    folder: TlsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = serial_of(folder.public.certificate)
    caplog.set_level(logging.INFO)
    async with https_stand(folder) as stand:
        key = folder.public.key.read_bytes()
        folder.public.key.write_text("half a key")
        await until(lambda: "former certificate stays" in caplog.text, what="a line in the log")
        assert await shown_serial(stand) == before
        folder.public.key.unlink()
        await until(lambda: "cannot read" in caplog.text, what="another line")
        folder.public.key.write_bytes(key)
        await until(lambda: "was renewed" in caplog.text, what="good files are taken again")
        assert await shown_serial(stand) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda it: it.public.key.unlink(), "cannot read"),
        (lambda it: it.public.key.write_bytes(it.service.key.read_bytes()), "no certificate and"),
        (lambda it: expire(it.public, it.ca, it.ca_key), "has expired"),
    ],
    ids=["missing", "another's key", "expired"],
)
def test_a_bad_file_stops_the_start_and_names_the_setting(
    folder: TlsFolder, spoil: Callable[[TlsFolder], None], words: str
) -> None:
    spoil(folder)
    files = folder.public
    settings = GatewayConfig(https_certificate=str(files.certificate), https_key=str(files.key))
    with pytest.raises(ConfigError, match=f"DEEPFLOW_GATEWAY_HTTPS_CERTIFICATE.*{words}"):
        public_certificate(settings)


def test_certificate_and_key_belong_together(folder: TlsFolder) -> None:
    assert public_certificate(GatewayConfig()) is None
    with pytest.raises(ConfigError, match="DEEPFLOW_GATEWAY_HTTPS_KEY is not set"):
        public_certificate(GatewayConfig(https_certificate=str(folder.public.certificate)))
    with pytest.raises(ConfigError, match="DEEPFLOW_GATEWAY_HTTPS_CERTIFICATE is not set"):
        public_certificate(GatewayConfig(https_key=str(folder.public.key)))
