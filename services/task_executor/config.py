"""Every setting of a task executor."""

from pydantic import Field

from deepflow.config import MeshServiceConfig


class TaskExecutorConfig(MeshServiceConfig):
    """The shell's own settings and those it hands to its engine."""

    preload: str = Field(
        "",
        pattern="^(|torch)$",
        description="What the engine imports before it knows its model: torch, or nothing.",
    )
    cpu_threads: int = Field(
        0, ge=0, description="CPU threads of the engine; 0 = the cores it may use."
    )
    kv_blocks: int = Field(0, ge=0, description="KV blocks to hold; 0 = derived from memory.")
    kv_dram_bytes: int = Field(
        0, ge=0, description="Host memory for KV that has left the device, in bytes; 0 = none."
    )
    kv_disk_bytes: int = Field(
        0, ge=0, description="Disk for KV that has left the device and that memory; 0 = none."
    )
    kv_disk_folder: str = Field(
        "", description="Where KV on disk goes; empty = deepflow-kv-UID in the temporary folder."
    )
    max_sequences: int = Field(
        0, ge=0, description="Sequences in one batch; 0 = the device's default."
    )
    max_step_tokens: int = Field(
        0, ge=0, description="Token positions computed in one step; 0 = the device's default."
    )
    max_tasks: int = Field(
        4096, ge=1, description="Tasks accepted at a time; one more is refused with a retry hint."
    )
    hang_factor: float = Field(
        20.0, gt=1, description="A step that takes this many times its prediction is a hang."
    )
    hang_floor_seconds: float = Field(
        30.0, gt=0, description="No step shorter than this is ever called a hang."
    )
    suspended_seconds: float = Field(
        5.0, gt=0, description="An engine that a signal stopped for longer is killed and replaced."
    )
    load_timeout_seconds: float = Field(
        900.0, gt=0, description="A model that is not loaded by then has failed to load."
    )

    kv_index_store_seconds: float = Field(
        30.0, gt=0, description="Least time between two copies of the KV index to the kv_store."
    )

    @property
    def engine_settings(self) -> dict[str, int]:
        """What the engine is told beside its model: only what was set."""
        wanted = {
            "cpu_threads": self.cpu_threads,
            "kv_blocks": self.kv_blocks,
            "kv_dram_bytes": self.kv_dram_bytes,
            "kv_disk_bytes": self.kv_disk_bytes,
            "max_sequences": self.max_sequences,
            "max_step_tokens": self.max_step_tokens,
        }
        return {name: value for name, value in wanted.items() if value}
