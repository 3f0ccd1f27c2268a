"""What a person asked a stack to serve, and how the stack tells how far it is."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deepflow import clock

if TYPE_CHECKING:
    from deepflow.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the stack is to serve."""

    name: str
    source: Path
    device: str
    task_executors: int
    dtype: str = ""  # empty and 0: what is best, as much as fits
    max_tokens: int = 0
    kv_bytes: int = 0
    tool_format: str = ""
    policy: str = ""
    tpot_ms: int = 0
    ttft_ms: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_dram_bytes: int = 0
    kv_disk_bytes: int = 0

    def deployment(self) -> "cluster_pb2.Deployment":
        """As the cluster manager is asked for it."""
        from deepflow.v1 import cluster_pb2  # late: protobuf takes its time to import

        return cluster_pb2.Deployment(
            name=self.name,
            source=str(self.source),
            device=self.device,
            replicas=self.task_executors,
            dtype=self.dtype,
            max_tokens=self.max_tokens,
            kv_bytes=self.kv_bytes,
            tool_format=self.tool_format,
            engine=cluster_pb2.EngineOptions(
                policy=self.policy,
                tpot_ms=self.tpot_ms,
                ttft_ms=self.ttft_ms,
                # One is what nothing means, so that it is no other load.
                tensor_parallel=self.tensor_parallel if self.tensor_parallel > 1 else 0,
                pipeline_parallel=self.pipeline_parallel if self.pipeline_parallel > 1 else 0,
                kv_dram_bytes=self.kv_dram_bytes,
                kv_disk_bytes=self.kv_disk_bytes,
            ),
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A stack that answers."""

    model: str
    device: str
    has_chat_template: bool
    urls: list[str]
    data_dir: Path
    log_dir: Path
    pid: int
    seconds: float
    step_seconds: dict[str, float]
    makes_embeddings: bool = False  # instead of text
    ca: Path | None = None  # what clients trust, where this host's own CA signed for the address


class Reporter(Protocol):
    """Whoever shows the life of a stack to a person or a script."""

    def begin(self, step: str) -> None: ...

    def detail(self, text: str) -> None:
        """What the step that began last waits for."""

    def end(self, step: str, seconds: float) -> None: ...

    def note(self, text: str) -> None:
        """A line worth knowing that belongs to no step."""

    def ready(self, ready: Ready) -> None: ...

    def stopping(self) -> None: ...

    def stopped(self) -> None: ...


class Steps:
    """The named pieces of a start-up: each shown while it runs and timed when it ends."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._reporter.begin(name)
        started = clock.monotonic()
        yield
        self.seconds[name] = clock.monotonic() - started
        self._reporter.end(name, self.seconds[name])
