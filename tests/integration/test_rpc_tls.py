"""Mutual TLS between services, over real sockets: who may speak to whom."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from deepflow import rpc
from deepflow.errors import Unauthenticated, Unavailable
from deepflow.local.tls_folder import TlsFolder
from deepflow.tls import SERVICE_NAME, MeshTls
from deepflow.v1 import store_pb2
from deepflow.v1.store_pb2_grpc import (
    RecordStoreServiceServicer,
    RecordStoreServiceStub,
    add_RecordStoreServiceServicer_to_server,
)
from tests.certificates import make_folder

TOKEN = "open sesame"
REQUEST = store_pb2.GetRecordRequest(key="kettle")
SECONDS = 30.0


class Store(RecordStoreServiceServicer):
    def __init__(self) -> None:
        self.calls = 0

    async def Get(self, request: store_pb2.GetRecordRequest, context: Any) -> Any:
        self.calls += 1
        return store_pb2.GetRecordResponse(record=store_pb2.Record(key=request.key, version=1))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> TlsFolder:
    return make_folder(tmp_path_factory.mktemp("ours") / "tls")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TlsFolder:
    return make_folder(tmp_path_factory.mktemp("theirs") / "tls")


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    rpc.speak_tls(None)


@pytest.fixture
async def store(ours: TlsFolder) -> AsyncIterator[tuple[Store, str]]:
    rpc.speak_tls(ours.mesh())
    store = Store()  # type: ignore[abstract]
    server = rpc.new_server(TOKEN)
    add_RecordStoreServiceServicer_to_server(store, server)
    port = await rpc.listen(server, "127.0.0.1", 0)
    yield store, f"127.0.0.1:{port}"
    await server.stop(None)


async def get(address: str, token: str = TOKEN) -> store_pb2.GetRecordResponse:
    peer = rpc.Peer(address, token)
    try:
        stub = RecordStoreServiceStub(peer.channel)
        return await peer.call(stub.Get, REQUEST, timeout_seconds=SECONDS)
    finally:
        await peer.close()


async def test_one_of_ours_with_the_token_is_answered(store: tuple[Store, str]) -> None:
    assert (await get(store[1])).record.key == "kettle"


async def test_a_certificate_is_no_token(store: tuple[Store, str]) -> None:
    with pytest.raises(Unauthenticated, match="cluster token"):
        await get(store[1], "wrong")
    assert store[0].calls == 0


async def test_a_plain_client_is_refused(store: tuple[Store, str]) -> None:
    rpc.speak_tls(None)
    with pytest.raises(Unavailable):
        await get(store[1])
    assert store[0].calls == 0


async def test_one_of_another_cluster_is_refused(
    store: tuple[Store, str], theirs: TlsFolder
) -> None:
    rpc.speak_tls(theirs.mesh())
    with pytest.raises(Unavailable):
        await get(store[1])
    assert store[0].calls == 0


async def test_one_that_knows_our_ca_and_is_another_cluster_is_refused(
    store: tuple[Store, str], ours: TlsFolder, theirs: TlsFolder
) -> None:
    stranger = theirs.mesh()
    rpc.speak_tls(MeshTls(ours.mesh().ca, stranger.certificate, stranger.key))
    with pytest.raises(Unavailable):
        await get(store[1])
    assert store[0].calls == 0


async def test_the_public_ports_certificate_is_none_of_a_service(
    store: tuple[Store, str], ours: TlsFolder
) -> None:
    files = ours.public
    public = MeshTls(ours.ca.read_bytes(), files.certificate.read_bytes(), files.key.read_bytes())
    rpc.speak_tls(public)
    with pytest.raises(Unavailable):
        await get(store[1])
    assert store[0].calls == 0


async def test_while_a_ca_is_replaced_both_are_trusted(
    store: tuple[Store, str], ours: TlsFolder, theirs: TlsFolder
) -> None:
    """As told in the handbook: the new CA goes behind the old one first."""
    both = ours.ca.read_bytes() + theirs.ca.read_bytes()
    old, new = ours.mesh(), theirs.mesh()
    servers = []
    for mine in (old, new):
        rpc.speak_tls(MeshTls(both, mine.certificate, mine.key))
        server = rpc.new_server(TOKEN)
        add_RecordStoreServiceServicer_to_server(store[0], server)
        servers.append((server, await rpc.listen(server, "127.0.0.1", 0)))
    for mine in (old, new):
        rpc.speak_tls(MeshTls(both, mine.certificate, mine.key))
        for _, port in servers:
            assert (await get(f"127.0.0.1:{port}")).record.version == 1
    for server, _ in servers:
        await server.stop(None)


async def test_one_without_a_certificate_is_refused(
    store: tuple[Store, str], ours: TlsFolder
) -> None:
    credentials = grpc.ssl_channel_credentials(ours.ca.read_bytes())
    options = (("grpc.ssl_target_name_override", SERVICE_NAME),)
    async with grpc.aio.secure_channel(store[1], credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await RecordStoreServiceStub(channel).Get(
                REQUEST, timeout=SECONDS, metadata=(("authorization", f"Bearer {TOKEN}"),)
            )
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert store[0].calls == 0


@pytest.mark.parametrize("impostor", ["plain", "another cluster", "public certificate"])
async def test_a_client_speaks_to_services_of_its_cluster_only(
    impostor: str, ours: TlsFolder, theirs: TlsFolder
) -> None:
    """Else the token would be sent to whoever listens at that address."""
    files = ours.public
    rpc.speak_tls(
        {
            "plain": None,
            "another cluster": theirs.mesh(),
            "public certificate": MeshTls(
                ours.ca.read_bytes(), files.certificate.read_bytes(), files.key.read_bytes()
            ),
        }[impostor]
    )
    store = Store()  # type: ignore[abstract]
    server = rpc.new_server(TOKEN)
    add_RecordStoreServiceServicer_to_server(store, server)
    port = await rpc.listen(server, "127.0.0.1", 0)
    rpc.speak_tls(ours.mesh())
    with pytest.raises(Unavailable):
        await get(f"127.0.0.1:{port}")
    assert store.calls == 0
    await server.stop(None)
