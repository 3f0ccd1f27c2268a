"""What a context may be, and how many of them a tenant may have. Pure."""

import re
import secrets
from collections.abc import Sequence

from deepflow.errors import DeepFlowError, InvalidRequest, NotFound, RateLimited, TooLarge
from deepflow.v1 import contexts_pb2

ID_PARAM = "context_cache_id"
TTL_SECONDS_MIN, TTL_SECONDS_MAX = 1.0, 7 * 24 * 3600.0
NAME_CHARACTERS_MAX = 128
# What one record of the store holds, with room for its frame.
CONTENT_BYTES_MAX = 1_000_000
PER_TENANT_MAX = 64
PINNED_PER_TENANT_MAX = 4
BYTES_PER_TENANT_MAX = 16 * 1024 * 1024
RETRY_SECONDS = 5.0
# Longer than any request may last; what is not complete by then never will be.
MAKING_SECONDS_MAX = 3600

_ID = re.compile(r"ctx-[0-9a-f]{32}")


def new_context_id() -> str:
    """Nobody can guess it, and it says nothing."""
    return f"ctx-{secrets.token_hex(16)}"


def is_context_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def not_found(context_id: str) -> NotFound:
    """The same for what never was, what is over, and what is another tenant's."""
    return NotFound(
        f"there is no context cache {context_id[:64]!r}, or it has expired; make one with"
        " POST /v1/context_caches",
        param=ID_PARAM,
        reason="context_cache_not_found",
    )


def is_alive(record: contexts_pb2.ContextRecord, now_unix_ms: int) -> bool:
    return record.is_complete and now_unix_ms < record.expires_unix_ms


def is_over(record: contexts_pb2.ContextRecord, now_unix_ms: int) -> bool:
    """Whether nobody needs its record any more: also where its maker died over it."""
    was_given_up = (
        not record.is_complete and record.created_unix_ms + MAKING_SECONDS_MAX * 1000 <= now_unix_ms
    )
    return was_given_up or record.expires_unix_ms <= now_unix_ms


def require_model(record: contexts_pb2.ContextRecord, model: str) -> None:
    if record.model != model:
        raise InvalidRequest(
            f"the context cache {record.id} was made for the model {record.model!r} and cannot be"
            f" used with {model[:64]!r}",
            param=ID_PARAM,
            reason="context_cache_mismatch",
        )


def check_request(request: contexts_pb2.CreateContextCacheRequest) -> None:
    """Raises InvalidRequest for what no context can be."""
    if not TTL_SECONDS_MIN <= request.ttl_seconds <= TTL_SECONDS_MAX:  # so is a NaN caught
        raise InvalidRequest(
            f"ttl_seconds must be from {TTL_SECONDS_MIN:g} to {TTL_SECONDS_MAX:g}, not"
            f" {request.ttl_seconds:g}",
            param="ttl_seconds",
            reason="out_of_range",
        )
    if len(request.name) > NAME_CHARACTERS_MAX:
        raise InvalidRequest(
            f"name has {len(request.name)} characters; at most {NAME_CHARACTERS_MAX} are allowed",
            param="name",
            reason="out_of_range",
        )
    kind = request.content.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("messages or a prompt is needed", param="messages")
    size = request.content.ByteSize()
    if size > CONTENT_BYTES_MAX:
        param = "messages" if kind == "chat" else "prompt"
        raise TooLarge(
            f"{param} takes {size} bytes; a context cache holds at most {CONTENT_BYTES_MAX}",
            param=param,
        )


def fault_of(
    mine: contexts_pb2.ContextRecord, others: Sequence[contexts_pb2.ContextRecord]
) -> DeepFlowError | None:
    """Why there is no room for this one beside the tenant's others.

    Of several that are made at one time those that sort first stay, so that each can tell alone.
    """
    older = [it for it in others if it.id != mine.id and _order(it) < _order(mine)]
    if len(older) >= PER_TENANT_MAX:
        return _too_many(f"there are {PER_TENANT_MAX} context caches already")
    if mine.is_pinned and sum(it.is_pinned for it in older) >= PINNED_PER_TENANT_MAX:
        return _too_many(f"{PINNED_PER_TENANT_MAX} context caches are pinned already", "pin")
    if sum(it.content_bytes for it in older) + mine.content_bytes > BYTES_PER_TENANT_MAX:
        return _too_many(f"context caches hold at most {BYTES_PER_TENANT_MAX} bytes together")
    return None


def _order(record: contexts_pb2.ContextRecord) -> tuple[int, str]:
    return record.created_unix_ms, record.id


def _too_many(what: str, param: str = "") -> RateLimited:
    return RateLimited(
        f"{what}; delete one, or wait until one expires",
        param=param,
        reason="too_many_context_caches",
        retry_after_seconds=RETRY_SECONDS,
    )
