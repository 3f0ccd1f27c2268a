"""The keys and tenants that this gateway knows: a replica that outlives the store's absence."""

import hmac
import logging

from deepflow.access.names import DEFAULT_TENANT
from deepflow.access.records import AccessList
from deepflow.access.secrets import cluster_key, hash_of
from deepflow.v1 import access_pb2
from services.gateway.auth.caller import Caller

log = logging.getLogger(__name__)

CLUSTER_KEY_ID = "cluster"


class KeyRing:
    """Only ever replaced by a whole list: a list that cannot be read changes nothing."""

    def __init__(self, cluster_token: str) -> None:
        # Whether the records were read at least once.
        self.is_known = False
        # Once seen it stays: records that vanish must not open the door.
        self.has_keys = False
        self._generation = ""
        self._callers: dict[bytes, Caller] = {}
        self._cluster_hash = hash_of(cluster_key(cluster_token)) if cluster_token else b""
        self._cluster = Caller(
            CLUSTER_KEY_ID, access_pb2.Tenant(name=DEFAULT_TENANT), is_admin=True
        )

    def adopt(self, known: AccessList) -> None:
        if self._generation and known.generation != self._generation:
            log.error("the keys are of another generation: the records were wiped or restored")
        self._generation = known.generation
        self.is_known = True
        # A revoked key was a key: revoking the last one locks up instead of opening.
        self.has_keys = self.has_keys or bool(known.keys)
        tenants = {tenant.name: tenant for tenant in known.tenants}
        self._callers = {
            key.hash: Caller(
                key.id,
                tenants.get(key.tenant) or access_pb2.Tenant(name=key.tenant),
                is_admin=key.is_admin,
            )
            for key in known.keys
            if not key.revoked_unix_ms
        }

    def find(self, key: str) -> Caller | None:
        """Looked up by its hash, which tells nothing about the key however long it takes."""
        given = hash_of(key)
        if self._cluster_hash and hmac.compare_digest(given, self._cluster_hash):
            return self._cluster
        return self._callers.get(given)

    def tenants(self) -> dict[str, access_pb2.Tenant]:
        return {caller.tenant.name: caller.tenant for caller in self._callers.values()}
