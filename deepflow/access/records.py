"""Keys and tenants as records of the kv_store, read and changed over its gRPC face."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from deepflow import clock, ids
from deepflow.access import names, secrets
from deepflow.conflicts import on_the_newest
from deepflow.errors import NotFound, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import access_pb2, store_pb2
from deepflow.v1.store_pb2_grpc import CounterServiceStub, RecordStoreServiceStub

KEYS = "keys/"
TENANTS = "tenants/"
CHANGED_SUBJECT = "deepflow.access"

CALL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class AccessList:
    """All that is known at one time. `generation` names one life of the records."""

    generation: str
    keys: tuple[access_pb2.ApiKey, ...]
    tenants: tuple[access_pb2.Tenant, ...]


class AccessRecords:
    """Raises DeepFlowError; Unavailable where the records cannot be read, never an empty list."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._records = RecordStoreServiceStub(peer.channel)
        self._counters = CounterServiceStub(peer.channel)

    async def read(self) -> AccessList:
        keys = await self._list(KEYS)
        tenants = await self._list(TENANTS)  # later: a tenant's limits are written before its keys
        try:
            return AccessList(
                keys.generation,
                tuple(access_pb2.ApiKey.FromString(record.value) for record in keys.records),
                tuple(access_pb2.Tenant.FromString(record.value) for record in tenants.records),
            )
        except DecodeError as error:
            raise Unavailable(f"a record of a key or tenant is damaged: {error}") from error

    async def create_key(
        self, tenant: str, *, is_admin: bool = False, label: str = ""
    ) -> tuple[str, access_pb2.ApiKey]:
        """The key itself, which is kept nowhere, and its record."""
        names.check_tenant_name(tenant)
        secret = secrets.new_key()
        key = access_pb2.ApiKey(
            id=ids.new_id("key"),
            hash=secrets.hash_of(secret),
            tenant=tenant,
            is_admin=is_admin,
            created_unix_ms=clock.unix_ms(),
            label=names.check_label(label),
        )
        await self._put(_record_key(key), key.SerializeToString(), expected=0)
        return secret, key

    async def revoke_key(self, key_id: str) -> access_pb2.ApiKey:
        """For good; revoking twice changes nothing."""
        for record in (await self._list(KEYS)).records:
            key = access_pb2.ApiKey.FromString(record.value)
            if key.id == key_id:
                break
        else:
            raise NotFound(f"there is no key {key_id[:128]!r}", param="id", reason="key_not_found")
        if not key.revoked_unix_ms:
            key.revoked_unix_ms = clock.unix_ms()
            # Nobody writes a key twice but to revoke it: whoever was first, it is revoked.
            await self._put(record.key, key.SerializeToString(), expected=None)
        return key

    async def change_tenant(self, name: str, changes: Mapping[str, Any]) -> access_pb2.Tenant:
        """Create or change a tenant; a field that is not in `changes` stays what it is."""
        names.check_tenant_name(name)

        async def change() -> access_pb2.Tenant:
            record = await self._get(TENANTS + name)
            tenant = access_pb2.Tenant(name=name)
            if record is not None:
                tenant.MergeFromString(record.value)
            for field, value in changes.items():
                tenant.ClearField(field)  # type: ignore[arg-type]
                tenant.MergeFrom(access_pb2.Tenant(**{field: value}))
            names.check_tenant(tenant)
            expected = record.version if record is not None else 0
            await self._put(TENANTS + name, tenant.SerializeToString(), expected=expected)
            return tenant

        return await on_the_newest(change)

    async def usage(self, tenant: str = "", key_id: str = "") -> list[store_pb2.KeyUsage]:
        request = store_pb2.ListUsageRequest(tenant=tenant, key_id=key_id)
        reply = await self._peer.call(
            self._counters.ListUsage, request, timeout_seconds=CALL_SECONDS, idempotent=True
        )
        return list(reply.rows)

    async def _list(self, prefix: str) -> store_pb2.ListRecordsResponse:
        request = store_pb2.ListRecordsRequest(prefix=prefix)
        return await self._peer.call(self._records.List, request, timeout_seconds=CALL_SECONDS)

    async def _get(self, key: str) -> store_pb2.Record | None:
        request = store_pb2.GetRecordRequest(key=key)
        reply = await self._peer.call(self._records.Get, request, timeout_seconds=CALL_SECONDS)
        return reply.record if reply.HasField("record") else None

    async def _put(self, key: str, value: bytes, *, expected: int | None) -> None:
        request = store_pb2.PutRecordRequest(key=key, value=value, expected_version=expected)
        await self._peer.call(
            self._records.Put, request, timeout_seconds=CALL_SECONDS, idempotent=True
        )


def _record_key(key: access_pb2.ApiKey) -> str:
    return KEYS + key.hash.hex()
