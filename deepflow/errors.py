"""The one vocabulary of failures, and its two translations.

    DeepFlowError
    ├── InvalidRequest      400  INVALID_ARGUMENT     the caller's request is wrong; names the field
    │   └── TooLarge        413  OUT_OF_RANGE         a body or an input over its cap
    ├── Unauthenticated     401  UNAUTHENTICATED
    ├── PermissionDenied    403  PERMISSION_DENIED
    ├── NotFound            404  NOT_FOUND
    ├── Conflict            409  ABORTED              somebody else changed it first
    ├── RateLimited         429  RESOURCE_EXHAUSTED   come back after retry_after_seconds
    ├── Cancelled           499  CANCELLED            the caller went away
    ├── Internal            500  INTERNAL             our fault
    ├── Unavailable         503  UNAVAILABLE          nobody can serve this right now
    └── DeadlineExceeded    504  DEADLINE_EXCEEDED

Every process raises these and nothing else across a border. `deepflow.rpc` carries them over gRPC,
`openai_error` shows them to a client.
"""

from typing import ClassVar

from deepflow.v1 import types_pb2 as types


class DeepFlowError(Exception):
    """Base of all; `message` is a sentence for a person that says what would be right."""

    code: ClassVar[types.ErrorCode.ValueType] = types.ERROR_CODE_INTERNAL
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    default_reason: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str = "",
        reason: str = "",
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.reason = reason or self.default_reason
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> str:
        raise TypeError("errors cross a border as deepflow.v1.Error, never pickled")


class InvalidRequest(DeepFlowError):
    code = types.ERROR_CODE_INVALID_REQUEST
    http_status = 400
    openai_type = "invalid_request_error"
    default_reason = "invalid_value"


class TooLarge(InvalidRequest):
    code = types.ERROR_CODE_TOO_LARGE
    http_status = 413
    default_reason = "too_large"


class Unauthenticated(DeepFlowError):
    code = types.ERROR_CODE_UNAUTHENTICATED
    http_status = 401
    openai_type = "authentication_error"
    default_reason = "invalid_api_key"


class PermissionDenied(DeepFlowError):
    code = types.ERROR_CODE_PERMISSION_DENIED
    http_status = 403
    openai_type = "permission_error"
    default_reason = "permission_denied"


class NotFound(DeepFlowError):
    code = types.ERROR_CODE_NOT_FOUND
    http_status = 404
    openai_type = "not_found_error"
    default_reason = "not_found"


class Conflict(DeepFlowError):
    code = types.ERROR_CODE_CONFLICT
    http_status = 409
    openai_type = "conflict_error"
    default_reason = "conflict"


class RateLimited(DeepFlowError):
    code = types.ERROR_CODE_RATE_LIMITED
    http_status = 429
    openai_type = "rate_limit_error"
    default_reason = "rate_limit_exceeded"


class Cancelled(DeepFlowError):
    code = types.ERROR_CODE_CANCELLED
    http_status = 499
    default_reason = "cancelled"


class Internal(DeepFlowError):
    pass


class Unavailable(DeepFlowError):
    code = types.ERROR_CODE_UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"
    default_reason = "service_unavailable"


class DeadlineExceeded(DeepFlowError):
    code = types.ERROR_CODE_DEADLINE_EXCEEDED
    http_status = 504
    openai_type = "timeout_error"
    default_reason = "deadline_exceeded"


_BY_CODE: dict[int, type[DeepFlowError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        TooLarge,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        Conflict,
        RateLimited,
        Cancelled,
        Internal,
        Unavailable,
        DeadlineExceeded,
    )
}


def to_proto(error: DeepFlowError) -> types.Error:
    return types.Error(
        code=error.code,
        message=error.message,
        param=error.param,
        reason=error.reason,
        retry_after_seconds=error.retry_after_seconds,
    )


def from_proto(error: types.Error) -> DeepFlowError:
    kind = _BY_CODE.get(error.code, Internal)
    return kind(
        error.message,
        param=error.param,
        reason=error.reason,
        retry_after_seconds=error.retry_after_seconds,
    )


def openai_error(error: DeepFlowError) -> dict[str, dict[str, str | None]]:
    """The body that OpenAI's clients expect beside the error's HTTP status."""
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.param or None,
            "code": error.reason,
        }
    }
