"""What is counted of every process while a soak goes on, and what must be as it was before."""

import contextlib
import statistics
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Self

import httpx
import psutil

from deepflow.errors import DeepFlowError
from tests.chaos.mesh import DATA_PATH, Mesh

SAMPLE_SECONDS = 2.0
MIB = 1 << 20
# Between the first third of a soak and its last: allocators breathe, and caches fill.
RSS_GROWTH_MAX = 0.10
RSS_SLACK_BYTES = 8 * MIB
FDS_GROWTH_MAX = 4

# Idle, these are what they were before any work came.
GAUGES = (
    "deepflow_gateway_requests_in_flight",
    "deepflow_gateway_job_executor_links_up",
    "deepflow_job_executor_jobs_running",
    "deepflow_job_executor_tasks_waiting",
    "deepflow_job_executor_links",
    "deepflow_job_executor_tokenizer_queue",
    "deepflow_job_executor_log_bytes",
    "deepflow_job_executor_stories",
    "deepflow_task_executor_sequences_running",
    "deepflow_task_executor_sequences_waiting",
    "deepflow_task_executor_kv_blocks_free",
)
LINKS = ("deepflow_gateway_job_executor_links_up", "deepflow_job_executor_links")


def baseline(mesh: Mesh) -> dict[str, float]:
    """Gauges of the data path, members by kind and state, and the names of the records."""
    found: dict[str, float] = {}
    for name in mesh.names(*DATA_PATH):
        found |= {f"{name} {k}": v for k, v in mesh.metrics(name).items() if k in GAUGES}
    members = "deepflow_cluster_manager_members{"
    for leader in mesh.leaders():  # for a moment there may be none
        found |= {k: v for k, v in mesh.metrics(leader).items() if k.startswith(members)}
    return found | {f"record {key}": 1.0 for key in mesh.records()}


def differences(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    names = before.keys() | after.keys()
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted(names)
        if before.get(name) != after.get(name)
    }


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    pid: int
    rss: int
    fds: int


class Sampler:
    """A thread that looks every other second."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self._began = time.monotonic()
        self.samples: defaultdict[str, list[Sample]] = defaultdict(list)
        self.links_min: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(psutil.Error, DeepFlowError):
                self._look_at_processes()
                self._look_at_links()

    def _look_at_processes(self) -> None:
        for name, process in self._mesh.processes().items():
            with contextlib.suppress(psutil.Error):  # it ended just now
                at, rss = time.monotonic() - self._began, process.memory_info().rss
                self.samples[name].append(Sample(at, process.pid, rss, process.num_fds()))

    def _look_at_links(self) -> None:
        for name in self._mesh.names("gateway", "job_executor"):
            try:
                metrics = self._mesh.metrics(name)
            except httpx.HTTPError:
                continue  # slow, or about to go
            for gauge in LINKS:
                if gauge in metrics:
                    lowest = min(metrics[gauge], self.links_min.get(name, metrics[gauge]))
                    self.links_min[name] = lowest

    def growth(self) -> dict[str, dict[str, Any]]:
        """Of every process that lived all the time: its first third and its last."""
        return {
            name: _growth(samples)
            for name, samples in self.samples.items()
            if len({it.pid for it in samples}) == 1 and len(samples) >= 6
        }


def _growth(samples: list[Sample]) -> dict[str, Any]:
    third = len(samples) // 3
    thirds = (samples[:third], samples[third:-third], samples[-third:])
    rss = [statistics.median(it.rss for it in part) for part in thirds]
    fds = [statistics.median(it.fds for it in part) for part in thirds]
    return {
        "rss_mib": [round(it / MIB, 1) for it in rss],
        "fds": fds,
        "is_flat": rss[-1] <= rss[0] * (1 + RSS_GROWTH_MAX) + RSS_SLACK_BYTES
        and fds[-1] <= fds[0] + FDS_GROWTH_MAX,
    }
