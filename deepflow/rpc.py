"""gRPC between services: one way to listen, one way to call, one translation of errors.

Every port asks for the cluster token, and for a certificate where the process was told to speak
mutual TLS. Every unary call has a deadline; only calls that their
method declares idempotent are retried. A DeepFlowError raised by a handler arrives at the caller
as the same DeepFlowError.
"""

import asyncio
import hmac
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from deepflow import clock
from deepflow.config import ConfigError
from deepflow.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    DeepFlowError,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    from_proto,
    to_proto,
)
from deepflow.tls import SERVICE_NAME, MeshTls
from deepflow.v1 import types_pb2 as types

log = logging.getLogger(__name__)

ERROR_METADATA_KEY = "deepflow-error-bin"
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
RETRY_FIRST_SECONDS = 0.05
RETRY_MAX_SECONDS = 1.0

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without it a peer that stands still is noticed only after gRPC's own minute.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Reconnect quickly: peers restart on purpose.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # No pause, whatever its name says: how long one attempt may take, handshakes included.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Two servers on one port is a mistake that must be heard.
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
)

_STATUS_BY_ERROR: tuple[tuple[type[DeepFlowError], grpc.StatusCode], ...] = (
    (TooLarge, grpc.StatusCode.OUT_OF_RANGE),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.ABORTED),
    (RateLimited, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Cancelled, grpc.StatusCode.CANCELLED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Internal, grpc.StatusCode.INTERNAL),
)
_ERROR_BY_STATUS = {status: kind for kind, status in _STATUS_BY_ERROR}

Response = TypeVar("Response")

# A process is one party of its cluster: what it shows is the same on each of its connections, and
# no call site can forget it.
_identity: MeshTls | None = None


def speak_tls(identity: MeshTls | None) -> None:
    """From now on: every port and every peer that is made. None = plain."""
    global _identity
    _identity = identity


def new_server(token: str) -> grpc.aio.Server:
    """A server whose every method asks for the token; add servicers, then `listen`."""
    return grpc.aio.server(interceptors=[_Guard(token), _ErrorBorder()], options=_OPTIONS)


async def listen(server: grpc.aio.Server, host: str, port: int) -> int:
    """Bind and start; answers the port (a free one for 0). Raises OSError for a busy one."""
    try:
        bound = _add_port(server, f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    if bound == 0:
        raise OSError(f"cannot listen on {host}:{port}")
    await server.start()
    return bound


class Peer:
    """A client's end: one channel to one address, with the token on every call."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.channel = _open_channel(address)
        self.metadata = (("authorization", f"Bearer {token}"),)

    async def call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: Any,
        *,
        timeout_seconds: float,
        idempotent: bool = False,
    ) -> Response:
        """One unary call within the deadline; retried while unavailable where idempotent."""
        deadline = clock.monotonic() + timeout_seconds
        pause = RETRY_FIRST_SECONDS
        cancel_requests = _cancel_requests()
        while True:
            remaining = deadline - clock.monotonic()
            try:
                return await method(request, timeout=max(remaining, 0.001), metadata=self.metadata)
            except grpc.aio.AioRpcError as error:
                # gRPC swallows a cancellation that meets the end of a call.
                if _cancel_requests() > cancel_requests:
                    raise asyncio.CancelledError from error
                failure = translate(error)
            if not (idempotent and isinstance(failure, Unavailable)):
                raise failure
            if clock.monotonic() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, RETRY_MAX_SECONDS)

    async def close(self) -> None:
        await self.channel.close()


def _add_port(server: grpc.aio.Server, address: str) -> int:
    if _identity is None:
        return server.add_insecure_port(address)
    credentials = grpc.ssl_server_credentials(
        [(_identity.key, _identity.certificate)],
        root_certificates=_identity.ca,
        require_client_auth=True,
    )
    return server.add_secure_port(address, credentials)


def _open_channel(address: str) -> grpc.aio.Channel:
    if _identity is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(_identity.ca, _identity.key, _identity.certificate)
    # Addresses come and go; the name in the certificate says that it is one of ours.
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", SERVICE_NAME))
    return grpc.aio.secure_channel(address, credentials, options=options)


def _cancel_requests() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def translate(error: grpc.aio.AioRpcError) -> DeepFlowError:
    """A gRPC failure as ours: exact where the peer sent one, by status code otherwise."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            return from_proto(types.Error.FromString(value))
    kind = _ERROR_BY_STATUS.get(error.code(), Internal)
    return kind(error.details() or error.code().name)


def status_of(error: DeepFlowError) -> grpc.StatusCode:
    return next(status for kind, status in _STATUS_BY_ERROR if isinstance(error, kind))


class _Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token, compared in constant time."""

    def __init__(self, token: str) -> None:
        if not token:
            raise ConfigError("DEEPFLOW_CLUSTER_TOKEN is not set: every gRPC port needs it")
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = dict(details.invocation_metadata).get("authorization", "")
        handler = await continuation(details)
        if hmac.compare_digest(str(given).encode(), self._expected):
            return handler
        # Also where there is no such method: a stranger does not learn which ones there are.
        return _refusal_like(handler)


class _ErrorBorder(grpc.aio.ServerInterceptor):
    """Turns what a unary handler raises into a status; anything unexpected is logged as ours."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler

        async def guarded(request: Any, context: Any) -> Any:
            try:
                return await handler.unary_unary(request, context)
            except DeepFlowError as error:
                await abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                log.exception("%s failed", details.method)
                await abort(context, Internal(f"{type(error).__name__} in {details.method}"))

        return grpc.unary_unary_rpc_method_handler(
            guarded, handler.request_deserializer, handler.response_serializer
        )


async def abort(context: Any, error: DeepFlowError) -> None:
    """End a call with one of ours; raises."""
    trailer = ((ERROR_METADATA_KEY, to_proto(error).SerializeToString()),)
    await context.abort(status_of(error), error.message, trailer)


def _refusal_like(handler: Any) -> Any:
    refusal = Unauthenticated(
        "the cluster token is missing or wrong", reason="invalid_cluster_token"
    )

    async def refuse_unary(_request: Any, context: Any) -> None:
        await abort(context, refusal)

    async def refuse_stream(_request: Any, context: Any) -> AsyncIterator[Any]:
        await abort(context, refusal)
        yield None

    if handler is None:
        return grpc.stream_stream_rpc_method_handler(refuse_stream)
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(refuse_stream, handler.request_deserializer, handler.response_serializer)
    make = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(refuse_unary, handler.request_deserializer, handler.response_serializer)
