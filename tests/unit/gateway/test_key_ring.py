"""What a gateway believes about keys, and what it never believes."""

from deepflow.access.names import DEFAULT_TENANT
from deepflow.access.records import AccessList
from deepflow.access.secrets import cluster_key, hash_of, new_key
from deepflow.v1 import access_pb2
from services.gateway.auth.gate import is_loopback
from services.gateway.auth.key_ring import KeyRing


def ring_with(*keys: access_pb2.ApiKey, tenants: tuple[access_pb2.Tenant, ...] = ()) -> KeyRing:
    ring = KeyRing("token")
    ring.adopt(AccessList("life-1", keys, tenants))
    return ring


def test_keys_are_long_random_and_kept_as_a_hash() -> None:
    one, other = new_key(), new_key()
    assert one != other and one.startswith("df-") and len(one) == 3 + 43
    assert one.encode() not in hash_of(one) and len(hash_of(one)) == 32


def test_a_key_brings_its_tenant_with_its_limits() -> None:
    secret = new_key()
    ring = ring_with(
        access_pb2.ApiKey(id="key-1", hash=hash_of(secret), tenant="shop"),
        tenants=(access_pb2.Tenant(name="shop", requests_per_minute=7, allowed_models=["a"]),),
    )
    caller = ring.find(secret)
    assert caller is not None and caller.tenant.requests_per_minute == 7
    assert caller.may_use("a") and not caller.may_use("b") and not caller.is_admin
    assert ring.find(new_key()) is None


def test_a_revoked_key_opens_nothing_and_still_counts_as_a_key() -> None:
    secret = new_key()
    ring = ring_with(access_pb2.ApiKey(id="key-1", hash=hash_of(secret), revoked_unix_ms=5))
    assert ring.find(secret) is None
    assert ring.has_keys


def test_keys_that_vanish_do_not_open_the_door() -> None:
    ring = ring_with(access_pb2.ApiKey(id="key-1", hash=hash_of(new_key())))
    ring.adopt(AccessList("life-2", (), ()))
    assert ring.has_keys


def test_nothing_is_known_before_the_first_list() -> None:
    ring = KeyRing("token")
    assert not ring.is_known and not ring.has_keys


def test_the_cluster_has_a_key_of_its_own() -> None:
    caller = KeyRing("token").find(cluster_key("token"))
    assert caller is not None and caller.is_admin and caller.tenant.name == DEFAULT_TENANT
    assert KeyRing("another").find(cluster_key("token")) is None
    assert KeyRing("").find(cluster_key("")) is None


def test_which_hosts_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "example.org")))
