"""Contexts as records of the kv_store: what they are, and apart from it what they say.

contexts/<salt>/<id>          a ContextRecord
context-contents/<salt>/<id>  its content, which is written after it and deleted before it
"""

from google.protobuf.message import DecodeError

from deepflow.errors import Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import contexts_pb2, store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub

CONTEXTS, CONTENTS = "contexts/", "context-contents/"
CALL_SECONDS = 3.0


class ContextRecords:
    """Raises DeepFlowError; Unavailable where the store cannot be asked, never "there is none"."""

    def __init__(self, store: Peer) -> None:
        self._store = store
        self._stub = RecordStoreServiceStub(store.channel)

    async def put(self, cache_salt: bytes, record: contexts_pb2.ContextRecord) -> None:
        await self._put(_key(CONTEXTS, cache_salt, record.id), record.SerializeToString())

    async def put_content(
        self, cache_salt: bytes, context_id: str, content: contexts_pb2.ContextContent
    ) -> None:
        key = _key(CONTENTS, cache_salt, context_id)
        await self._put(key, content.SerializeToString(deterministic=True))

    async def get(self, cache_salt: bytes, context_id: str) -> contexts_pb2.ContextRecord | None:
        value = await self._get(_key(CONTEXTS, cache_salt, context_id))
        return None if value is None else _parse(value)

    async def get_content(
        self, cache_salt: bytes, context_id: str
    ) -> contexts_pb2.ContextContent | None:
        value = await self._get(_key(CONTENTS, cache_salt, context_id))
        if value is None:
            return None
        try:
            return contexts_pb2.ContextContent.FromString(value)
        except DecodeError as error:
            raise _damaged(error) from error

    async def list_of(self, cache_salt: bytes) -> list[contexts_pb2.ContextRecord]:
        found = await self._list(f"{CONTEXTS}{cache_salt.hex()}/")
        return [record for _, record in found]

    async def list_all(self) -> list[tuple[bytes, contexts_pb2.ContextRecord]]:
        """With the salt of each."""
        found = await self._list(CONTEXTS)
        return [(bytes.fromhex(key.split("/")[1]), record) for key, record in found]

    async def delete(self, cache_salt: bytes, context_id: str) -> None:
        await self._delete(_key(CONTENTS, cache_salt, context_id))
        await self._delete(_key(CONTEXTS, cache_salt, context_id))

    async def _put(self, key: str, value: bytes) -> None:
        request = store_pb2.PutRecordRequest(key=key, value=value)
        await self._store.call(
            self._stub.Put, request, timeout_seconds=CALL_SECONDS, idempotent=True
        )

    async def _get(self, key: str) -> bytes | None:
        request = store_pb2.GetRecordRequest(key=key)
        reply = await self._store.call(self._stub.Get, request, timeout_seconds=CALL_SECONDS)
        return reply.record.value if reply.HasField("record") else None

    async def _list(self, prefix: str) -> list[tuple[str, contexts_pb2.ContextRecord]]:
        request = store_pb2.ListRecordsRequest(prefix=prefix)
        reply = await self._store.call(self._stub.List, request, timeout_seconds=CALL_SECONDS)
        return [(it.key, _parse(it.value)) for it in reply.records]

    async def _delete(self, key: str) -> None:
        request = store_pb2.DeleteRecordRequest(key=key)
        await self._store.call(
            self._stub.Delete, request, timeout_seconds=CALL_SECONDS, idempotent=True
        )


def _key(space: str, cache_salt: bytes, context_id: str) -> str:
    return f"{space}{cache_salt.hex()}/{context_id}"


def _parse(value: bytes) -> contexts_pb2.ContextRecord:
    try:
        return contexts_pb2.ContextRecord.FromString(value)
    except DecodeError as error:
        raise _damaged(error) from error


def _damaged(error: DecodeError) -> Unavailable:
    return Unavailable(
        f"a record of a context cache is damaged: {error}", reason="context_store_unavailable"
    )
