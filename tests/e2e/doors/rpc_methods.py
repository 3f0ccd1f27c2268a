"""Knocking at gRPC ports: every method of every contract."""

import importlib
import pkgutil
from collections.abc import Iterator

import grpc
from google.protobuf.descriptor import MethodDescriptor

import deepflow.v1

CALL_SECONDS = 30.0
NO_SUCH_METHOD = "/deepflow.v1.Nothing/Nothing"


def methods() -> list[MethodDescriptor]:
    found = []
    for module in pkgutil.iter_modules(deepflow.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"deepflow.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                found += service.methods
    return found


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def knock(channel: grpc.Channel, method: MethodDescriptor, token: str | None) -> grpc.StatusCode:
    """Calls with an empty message; OK where it was answered."""
    return call(channel, path_of(method), token, _kind(method))


def call(
    channel: grpc.Channel, path: str, token: str | None, kind: str = "unary_unary"
) -> grpc.StatusCode:
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    question = _one() if kind.startswith("stream") else b""
    answer = getattr(channel, kind)(path)
    try:
        reply = answer(question, timeout=CALL_SECONDS, metadata=metadata)
        if kind.endswith("stream"):
            next(reply, None)
            reply.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def _kind(method: MethodDescriptor) -> str:
    asked = "stream" if method.client_streaming else "unary"
    answered = "stream" if method.server_streaming else "unary"
    return f"{asked}_{answered}"


def _one() -> Iterator[bytes]:
    yield b""
