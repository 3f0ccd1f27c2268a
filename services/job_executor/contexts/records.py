"""Contexts as records of the kv_store: what they are, and apart from it what they say.

contexts/<salt>/<id>          a ContextRecord
context-contents/<salt>/<id>  its content, which is written after it and deleted before it
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from deepflow.errors import DeadlineExceeded, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import contexts_pb2, store_pb2
from deepflow.v1.store_pb2_grpc import RecordStoreServiceStub
from services.job_executor.contexts import rules

CONTEXTS, CONTENTS = "contexts/", "context-contents/"
CALL_SECONDS = 3.0

log = logging.getLogger(__name__)


class ContextRecords:
    """Raises Unavailable where the store cannot be asked, never "there is none"."""

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
        await self._ask(self._stub.Put, request, idempotent=True)

    async def _get(self, key: str) -> bytes | None:
        reply = await self._ask(self._stub.Get, store_pb2.GetRecordRequest(key=key))
        return reply.record.value if reply.HasField("record") else None

    async def _list(self, prefix: str) -> list[tuple[str, contexts_pb2.ContextRecord]]:
        reply = await self._ask(self._stub.List, store_pb2.ListRecordsRequest(prefix=prefix))
        return [(it.key, _parse(it.value)) for it in reply.records]

    async def _delete(self, key: str) -> None:
        request = store_pb2.DeleteRecordRequest(key=key)
        await self._ask(self._stub.Delete, request, idempotent=True)

    async def _ask(
        self, method: Callable[..., Awaitable[Any]], request: Any, *, idempotent: bool = False
    ) -> Any:
        """What gRPC says of a store that is away names addresses, and may reach a client."""
        try:
            return await self._store.call(
                method, request, timeout_seconds=CALL_SECONDS, idempotent=idempotent
            )
        except (Unavailable, DeadlineExceeded) as error:
            log.info("context caches cannot be looked up: %s", error)
            raise _away("context caches cannot be looked up right now") from error


def _key(space: str, cache_salt: bytes, context_id: str) -> str:
    return f"{space}{cache_salt.hex()}/{context_id}"


def _parse(value: bytes) -> contexts_pb2.ContextRecord:
    try:
        return contexts_pb2.ContextRecord.FromString(value)
    except DecodeError as error:
        raise _damaged(error) from error


def _damaged(error: DecodeError) -> Unavailable:
    return _away(f"a record of a context cache is damaged: {error}")


def _away(why: str) -> Unavailable:
    return Unavailable(
        why, reason="context_store_unavailable", retry_after_seconds=rules.RETRY_SECONDS
    )
