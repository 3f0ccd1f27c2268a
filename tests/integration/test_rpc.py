"""The gRPC edge over a real socket: tokens, deadlines, retries, errors."""

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from deepflow import clock, rpc
from deepflow.errors import Conflict, DeadlineExceeded, Internal, Unauthenticated, Unavailable
from deepflow.v1 import store_pb2, tasks_pb2
from deepflow.v1.store_pb2_grpc import (
    RecordStoreServiceServicer,
    RecordStoreServiceStub,
    add_RecordStoreServiceServicer_to_server,
)
from deepflow.v1.tasks_pb2_grpc import (
    TaskExecutorServiceServicer,
    TaskExecutorServiceStub,
    add_TaskExecutorServiceServicer_to_server,
)

TOKEN = "open sesame"
SECONDS = 30.0  # of a call that is answered in milliseconds
SHAKE_HANDS_SECONDS = 1.0
OURS = rpc._OPTIONS

# A server of its own, so that it can be stopped without stopping its client.
SERVER = """
import asyncio
from deepflow import clock, rpc

async def main():
    server = rpc.new_server("open sesame")
    print(await rpc.listen(server, "127.0.0.1", 0), flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""
GET = store_pb2.GetRecordRequest(key="kettle")


class Store(RecordStoreServiceServicer):
    """A RecordStoreService that fails as told, then answers."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.calls = 0
        self.hang = False

    async def Get(self, request: store_pb2.GetRecordRequest, context: Any) -> Any:
        self.calls += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.failures:
            raise self.failures.pop(0)
        return store_pb2.GetRecordResponse(record=store_pb2.Record(key=request.key, version=1))


class Tasks(TaskExecutorServiceServicer):
    async def Tasks(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[tasks_pb2.TasksResponse]:
        async for request in request_iterator:
            yield tasks_pb2.TasksResponse(
                welcome=tasks_pb2.TasksWelcome(task_executor_id=request.hello.job_executor_id)
            )


@pytest.fixture
async def store() -> AsyncIterator[tuple[Store, str]]:
    store = Store()  # type: ignore[abstract]
    server = rpc.new_server(TOKEN)
    add_RecordStoreServiceServicer_to_server(store, server)
    tasks = Tasks()  # type: ignore[abstract]
    add_TaskExecutorServiceServicer_to_server(tasks, server)
    port = await rpc.listen(server, "127.0.0.1", 0)
    yield store, f"127.0.0.1:{port}"
    await server.stop(None)


async def get(address: str, token: str = TOKEN, **options: Any) -> store_pb2.GetRecordResponse:
    peer = rpc.Peer(address, token)
    stub = RecordStoreServiceStub(peer.channel)
    try:
        return await peer.call(stub.Get, GET, **{"timeout_seconds": SECONDS, **options})
    finally:
        await peer.close()


async def test_a_call_with_the_token_is_answered(store: tuple[Store, str]) -> None:
    assert (await get(store[1])).record.key == "kettle"


@pytest.mark.parametrize("token", ["", "wrong", "open sesame "])
async def test_a_call_without_it_is_refused(store: tuple[Store, str], token: str) -> None:
    with pytest.raises(Unauthenticated, match="cluster token"):
        await get(store[1], token)
    assert store[0].calls == 0


async def test_a_stranger_does_not_learn_which_methods_there_are(
    store: tuple[Store, str],
) -> None:
    for token, code in (("wrong", "UNAUTHENTICATED"), (TOKEN, "UNIMPLEMENTED")):
        peer = rpc.Peer(store[1], token)
        ask: Any = peer.channel.unary_unary("/deepflow.v1.RecordStoreService/NoSuchMethod")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ask(b"", metadata=peer.metadata, timeout=SECONDS)
        assert refusal.value.code().name == code
        await peer.close()


async def test_a_stream_without_it_is_refused(store: tuple[Store, str]) -> None:
    peer = rpc.Peer(store[1], "wrong")
    stream = TaskExecutorServiceStub(peer.channel).Tasks(metadata=peer.metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert isinstance(rpc.translate(caught.value), Unauthenticated)
    await peer.close()


async def test_a_stream_with_it_flows_both_ways(store: tuple[Store, str]) -> None:
    peer = rpc.Peer(store[1], TOKEN)
    stream: Any = TaskExecutorServiceStub(peer.channel).Tasks(metadata=peer.metadata)
    for name in ("je-0", "je-1"):
        await stream.write(tasks_pb2.TasksRequest(hello=tasks_pb2.TasksHello(job_executor_id=name)))
        assert (await stream.read()).welcome.task_executor_id == name
    stream.cancel()
    await peer.close()


async def test_our_errors_arrive_whole(store: tuple[Store, str]) -> None:
    store[0].failures = [Conflict("changed", param="key", reason="stale", retry_after_seconds=2)]
    with pytest.raises(Conflict) as caught:
        await get(store[1])
    assert vars(caught.value) == vars(
        Conflict("changed", param="key", reason="stale", retry_after_seconds=2)
    )


async def test_a_bug_is_internal_and_shows_no_secrets(store: tuple[Store, str]) -> None:
    store[0].failures = [ZeroDivisionError("password is hunter2")]
    with pytest.raises(Internal) as caught:
        await get(store[1])
    assert "hunter2" not in caught.value.message


async def test_only_idempotent_calls_are_retried(store: tuple[Store, str]) -> None:
    store[0].failures = [Unavailable("not yet"), Unavailable("not yet")]
    assert (await get(store[1], idempotent=True)).record.version == 1
    assert store[0].calls == 3
    store[0].failures = [Unavailable("not yet")]
    with pytest.raises(Unavailable):
        await get(store[1])


async def test_retries_end_with_the_deadline(
    store: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the time passes from each look at the clock to the next."""
    store[0].failures = [Unavailable("never")] * 1000
    looks = itertools.count()
    monkeypatch.setattr(clock, "monotonic", lambda: next(looks) * SECONDS / 4)
    with pytest.raises(Unavailable, match="never"):
        await get(store[1], idempotent=True)
    assert store[0].calls == 2


async def test_a_hanging_peer_costs_the_deadline(store: tuple[Store, str]) -> None:
    store[0].hang = True
    with pytest.raises(DeadlineExceeded):
        await get(store[1], timeout_seconds=0.2)


async def test_two_servers_cannot_share_a_port(store: tuple[Store, str]) -> None:
    port = int(store[1].rpartition(":")[2])
    server = rpc.new_server(TOKEN)
    with pytest.raises(OSError, match=str(port)):
        await rpc.listen(server, "127.0.0.1", port)
    await server.stop(None)


async def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await get("127.0.0.1:1")


async def test_a_peer_that_is_slow_to_shake_hands_is_reached(store: tuple[Store, str]) -> None:
    """Across an ocean, or on a machine with much to do, an attempt takes more than a moment."""
    lines: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        finally:
            writer.close()

    async def connect(near: asyncio.StreamReader, near_end: asyncio.StreamWriter) -> None:
        await asyncio.sleep(SHAKE_HANDS_SECONDS)
        far, far_end = await asyncio.open_connection(*store[1].split(":"))
        lines.extend((near_end, far_end))
        await asyncio.gather(carry(near, far_end), carry(far, near_end))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as line:
        host, port = line.sockets[0].getsockname()
        assert (await get(f"{host}:{port}", idempotent=True)).record.key == "kettle"
        for end in lines:
            end.close()


async def test_a_peer_that_stands_still_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a tenth of the time that we set; what we do not set keeps gRPC's own minute."""
    quick = tuple((k, v // 10 if k.endswith(("ve_time_ms", "timeout_ms")) else v) for k, v in OURS)
    monkeypatch.setattr(rpc, "_OPTIONS", quick)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    peer = rpc.Peer(f"127.0.0.1:{int(await server.stdout.readline())}", TOKEN)
    try:
        await asyncio.wait_for(peer.channel.channel_ready(), SECONDS)
        server.send_signal(signal.SIGSTOP)
        call = TaskExecutorServiceStub(peer.channel).Tasks(metadata=peer.metadata)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(call.read(), SECONDS)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await peer.close()
        server.kill()
        await server.wait()


async def test_a_cancellation_that_grpc_swallows_still_ends_the_call() -> None:
    """As grpc.aio does where the call ends in the moment of the cancellation."""
    started = asyncio.Event()

    async def method(*_: Any, **__: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, "gone") from None

    peer = rpc.Peer("127.0.0.1:1", TOKEN)
    call = asyncio.create_task(peer.call(method, GET, timeout_seconds=60, idempotent=True))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(SECONDS):
            await call
    await peer.close()
