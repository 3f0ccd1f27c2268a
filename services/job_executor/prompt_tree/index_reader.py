"""A task executor's whole index: from itself, or from the copy that the kv_store keeps."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from deepflow.core.blocks import IDENTITY_BYTES
from deepflow.errors import DeepFlowError, Internal
from deepflow.rpc import Peer, translate
from deepflow.v1 import cache_pb2
from deepflow.v1.cache_pb2_grpc import DisposableStoreServiceStub, KvIndexServiceStub

READ_SECONDS_MAX = 30.0
STORE_SECONDS_MAX = 5.0
BLOCKS_MAX = 4 * 1024 * 1024  # of one task executor
STORED_INDEX = "kv-index"  # key: kv-index/<task executor>/<number of the chunk>


@dataclass(frozen=True, slots=True)
class Index:
    incarnation: int
    seq: int
    blocks: set[bytes]


async def read_index(address: str, token: str) -> Index:
    """Ask the task executor. Raises DeepFlowError; what was read in part is nothing."""
    peer = Peer(address, token)
    try:
        stub = KvIndexServiceStub(peer.channel)
        call: Any = stub.ReadKvIndex(
            cache_pb2.ReadKvIndexRequest(), timeout=READ_SECONDS_MAX, metadata=peer.metadata
        )
        assembly = Assembly()
        async for chunk in call:
            assembly.add(chunk)
        return assembly.finish()
    except grpc.aio.AioRpcError as error:
        raise translate(error) from error
    finally:
        await peer.close()


async def read_stored_index(store: Peer, task_executor_id: str) -> Index | None:
    """The kv_store's copy; None where there is none, or only parts of several."""
    stub = DisposableStoreServiceStub(store.channel)
    values: list[bytes] = []
    request = cache_pb2.ListDisposablesRequest(prefix=f"{STORED_INDEX}/{task_executor_id}/")
    while True:
        page = await store.call(
            stub.List, request, timeout_seconds=STORE_SECONDS_MAX, idempotent=True
        )
        values += [it.value for it in page.disposables]
        if not page.is_truncated or not page.disposables:
            # A big index takes a while, and this loop passes tokens on.
            return await asyncio.to_thread(_parse_newest, values)
        request.after = page.disposables[-1].key


def _parse_newest(values: Iterable[bytes]) -> Index | None:
    try:
        return assemble_newest(map(cache_pb2.KvIndexChunk.FromString, values))
    except DecodeError:
        return None  # of a release that wrote it otherwise


def assemble_newest(chunks: Iterable[cache_pb2.KvIndexChunk]) -> Index | None:
    """Chunks of an older writing may lie beside those of the newest, which may be incomplete."""
    ordered = sorted(chunks, key=lambda it: (it.incarnation, it.seq, it.number))
    if not ordered:
        return None
    newest = (ordered[-1].incarnation, ordered[-1].seq)
    assembly = Assembly()
    try:
        for chunk in ordered:
            if (chunk.incarnation, chunk.seq) == newest:
                assembly.add(chunk)
        return assembly.finish()
    except DeepFlowError:
        return None


class Assembly:
    """Chunks on their way to an index; raises Internal where they do not fit together."""

    def __init__(self) -> None:
        self._first: cache_pb2.KvIndexChunk | None = None
        self._num_chunks = 0
        self._blocks: set[bytes] = set()

    def add(self, chunk: cache_pb2.KvIndexChunk) -> None:
        self._first = first = self._first or chunk
        same = (chunk.incarnation, chunk.seq, chunk.count) == (
            first.incarnation,
            first.seq,
            first.count,
        )
        if not same or chunk.number != self._num_chunks:
            raise Internal("a KV index came in chunks that do not follow one another")
        self._num_chunks += 1
        for run in chunk.runs:
            if any(len(identity) != IDENTITY_BYTES for identity in run.identities):
                raise Internal(f"a KV index holds an identity that is not {IDENTITY_BYTES} bytes")
            self._blocks.update(run.identities)
        if len(self._blocks) > BLOCKS_MAX:
            raise Internal(f"a KV index has over {BLOCKS_MAX} blocks")

    def finish(self) -> Index:
        if self._first is None or self._num_chunks != self._first.count:
            raise Internal("a KV index ended before its last chunk")
        return Index(self._first.incarnation, self._first.seq, self._blocks)
