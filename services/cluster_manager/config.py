"""Every setting of the cluster manager."""

from pathlib import Path

from pydantic import Field

from deepflow.config import MeshServiceConfig
from deepflow.core.fetched_models import default_models_folder


class ClusterManagerConfig(MeshServiceConfig):
    port: int = Field(7101, ge=0, le=65535, description="gRPC port; 0 = a free one.")
    job_executors: int = Field(
        1, ge=0, le=256, description="Job executors to keep running, until somebody scales them."
    )
    gateways: int = Field(
        0,
        ge=0,
        le=64,
        description="Gateways to keep running, until somebody scales them; 0 = somebody else does.",
    )
    driver: str = Field(
        "none",
        pattern="^(local|none)$",
        description="What starts and stops pods: local (this host's supervisor) or none.",
    )
    supervisor_socket: str = Field(
        "", description="Unix socket of the supervisor; needed by the local driver."
    )
    models_dir: str = Field(
        "",
        description="Folder where hubs' models were fetched to, so that they can be named by their"
        " id; empty = deepflow/models in the user's cache.",
    )
    stop_grace_seconds: float = Field(
        20.0, ge=0, description="How long a pod that is stopped may take to end its work."
    )
    drain_grace_seconds: float = Field(
        60.0,
        ge=0,
        description="How long a replica that is to go may take to end its work, given no more.",
    )
    heartbeat_interval_seconds: float = Field(
        1.0, ge=0.05, le=60, description="How often members send heartbeats."
    )
    member_timeout_seconds: float = Field(
        5.0,
        ge=0.2,
        le=600,
        description="Silence after which a member is given up, while others are heard.",
    )
    lease_seconds: float = Field(
        5.0, ge=0.5, le=300, description="How long leadership lasts without renewal."
    )
    load_timeout_seconds: float = Field(
        1800.0, gt=0, description="Longest time that loading one model may take."
    )
    unload_timeout_seconds: float = Field(
        60.0, gt=0, description="Longest time that unloading one model may take."
    )
    load_retry_first_seconds: float = Field(
        1.0, gt=0, description="Pause after a first failed load; doubles with every further one."
    )
    load_retry_max_seconds: float = Field(
        60.0, gt=0, description="Longest pause between two tries to load a model."
    )
    tick_seconds: float = Field(
        0.5, gt=0, le=10, description="Longest pause between two looks at the whole cluster."
    )
    store_call_seconds: float = Field(
        2.0, gt=0, description="Longest wait for one answer of the kv_store."
    )

    @property
    def models_folder(self) -> Path:
        return Path(self.models_dir).expanduser() if self.models_dir else default_models_folder()
