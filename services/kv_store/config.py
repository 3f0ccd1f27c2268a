"""Every setting of the kv_store."""

from pydantic import Field

from deepflow.config import MeshServiceConfig


class KvStoreConfig(MeshServiceConfig):
    port: int = Field(7102, ge=0, le=65535, description="gRPC port; 0 = a free one.")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern="^(redis|rediss|unix)://",
        description="redis://host:port/db, rediss://… (TLS) or unix:///path of the Redis.",
        repr=False,
    )
    redis_password: str = Field("", description="Redis password; empty = none.", repr=False)
    redis_connect_seconds: float = Field(
        0.5, gt=0, le=30, description="Longest wait for a connection to Redis."
    )
    redis_command_seconds: float = Field(
        1.0, gt=0, le=30, description="Longest wait for the answer to one Redis command."
    )
    redis_connections: int = Field(
        16, ge=1, le=1024, description="Commands that may be on their way to Redis at once."
    )
    initialise: bool = Field(
        False,
        description="Mark an empty Redis as the beginning of a new record space. Set it only where"
        " the Redis is known to be new: without it an empty Redis means that records were lost.",
    )
    probe_seconds: float = Field(1.0, gt=0, le=60, description="Time between looks at Redis.")
    value_bytes_max: int = Field(
        1024 * 1024, ge=1, le=16 * 1024 * 1024, description="Largest value of one record."
    )
    disposable_redis_url: str = Field(
        "",
        pattern="^(|(redis|rediss|unix)://.+)$",
        description="Redis for what may be lost, best one without an append-only file; empty = the"
        " one that holds the records.",
        repr=False,
    )
    disposable_bytes_max: int = Field(
        256 * 1024 * 1024,
        ge=64 * 1024,
        description="Room for what may be lost; what expires soonest goes first.",
    )
    list_bytes_max: int = Field(
        32 * 1024 * 1024, ge=1, le=48 * 1024 * 1024, description="Largest answer to one List."
    )
