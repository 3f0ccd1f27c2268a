"""Keys, tenants and usage as JSON shows them; the same for the command and for HTTP."""

from typing import Any

from deepflow.access.names import WEIGHT_DEFAULT
from deepflow.v1 import access_pb2, store_pb2


def describe_key(key: access_pb2.ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "is_admin": key.is_admin,
        "label": key.label,
        "created_unix_ms": key.created_unix_ms,
        "revoked_unix_ms": key.revoked_unix_ms or None,
    }


def describe_tenant(tenant: access_pb2.Tenant) -> dict[str, Any]:
    """A limit that is null is none."""
    return {
        "name": tenant.name,
        "object": "tenant",
        "requests_per_minute": tenant.requests_per_minute or None,
        "tokens_per_minute": tenant.tokens_per_minute or None,
        "concurrent_requests": tenant.concurrent_requests or None,
        "allowed_models": list(tenant.allowed_models) or None,
        "weight": tenant.weight or WEIGHT_DEFAULT,
    }


def describe_usage(row: store_pb2.KeyUsage) -> dict[str, Any]:
    return {
        "tenant": row.tenant,
        "key_id": row.key_id,
        "model": row.model,
        "requests": row.requests,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "cached_tokens": row.cached_tokens,
    }
