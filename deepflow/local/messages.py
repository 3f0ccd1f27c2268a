"""What the supervisor's socket understands and answers: one JSON object a line."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from deepflow.errors import InvalidRequest

LINE_BYTES_MAX = 256 * 1024
SETTINGS_MAX = 64

Service = Literal["gateway", "job_executor", "task_executor", "cluster_manager", "kv_store"]
Name = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
Setting = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]{0,62}$")]
# In whose leadership a cluster manager asks; people ask without one.
Term = Annotated[int, msgspec.Meta(ge=1)]
Settings = Annotated[dict[Setting, bool | int | float | str], msgspec.Meta(max_length=SETTINGS_MAX)]


class ProcessRow(Struct, frozen=True):
    """One process as `list` and `watch` show it."""

    name: str
    service: str
    pid: int | None
    state: str
    since_unix_ms: int
    restarts: int
    exit_code: int | None
    log_file: str


class Start(Struct, tag_field="op", tag="start", forbid_unknown_fields=True):
    service: Service
    name: Name
    settings: Settings = {}
    term: Term | None = None


class Stop(Struct, tag_field="op", tag="stop", forbid_unknown_fields=True):
    name: str
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] | None = None
    term: Term | None = None


class List(Struct, tag_field="op", tag="list", forbid_unknown_fields=True):
    pass


class Watch(Struct, tag_field="op", tag="watch", forbid_unknown_fields=True):
    pass


class Describe(Struct, tag_field="op", tag="describe", forbid_unknown_fields=True):
    pass


class Cluster(Struct, tag_field="op", tag="cluster", forbid_unknown_fields=True):
    pass


class Shutdown(Struct, tag_field="op", tag="shutdown", forbid_unknown_fields=True):
    pass


Request = Start | Stop | List | Watch | Describe | Cluster | Shutdown

_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def decode(line: bytes) -> Request:
    """Raises InvalidRequest for anything but a known request."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"not a request of the supervisor: {error}") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"every line must be one JSON object: {error}") from error


def encode_success(**fields: Any) -> bytes:
    return msgspec.json.encode({"ok": True, **fields}) + b"\n"


def encode_failure(message: str) -> bytes:
    return msgspec.json.encode({"ok": False, "error": message}) + b"\n"
