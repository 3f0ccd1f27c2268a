"""Random requests through one small engine: all end, nobody waits for ever, and nothing is kept.

With preemption, each step planned while one runs, and KV in three tiers; on one rank and on
several, each a process of its own. Nothing is measured. `make soak-engine` is the long form.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from deepflow.bench.random_model import Shape, write
from deepflow.core.parallel import Layout
from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers
from services.task_executor.flowserve.master import Master
from services.task_executor.flowserve.messages import Load, Submit
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.scheduler.prefetch import ALWAYS
from tests.integration.random_requests import ROWS, VOCAB, Soak, check_end

# So many on each layout; without it few where ranks share the cores, and not on every layout.
LONG_REQUESTS = int(os.environ.get("DEEPFLOW_SOAK_REQUESTS", "0"))
REQUESTS = {Layout(): LONG_REQUESTS or 10_000, Layout(2, 1): LONG_REQUESTS or 1000}
if LONG_REQUESTS:
    REQUESTS |= {Layout(1, 2): LONG_REQUESTS, Layout(2, 2): LONG_REQUESTS}
SECONDS_MAX = 3600 if LONG_REQUESTS else 600
# Rows full of long answers need twice as many blocks as there are.
KV_BLOCKS, DRAM_BLOCKS, DISK_BLOCKS = 64, 48, 96
SETTINGS = {
    **{"max_sequences": ROWS, "kv_blocks": KV_BLOCKS, "max_tokens": 192, "max_step_tokens": 96},
    "steps_in_flight": 2,
}
LAYER_BLOCK_BYTES = 2048
HEADER_BYTES = 64  # of a rank's file on disk
# Of each process in the second half of the requests, which are remembered here until the end.
GROWTH_BYTES_MAX = 64 << 20


@dataclass
class Stand:
    layout: Layout
    master: Master
    disk: Path
    disk_bytes: int
    others: set[psutil.Process]  # of other tests, which come and go as they like

    @property
    def processes(self) -> list[psutil.Process]:
        """The engine's, that of its grammars, and the further ranks."""
        children = psutil.Process().children(recursive=True)
        return [psutil.Process(), *(it for it in children if it not in self.others)]

    def memory_held(self) -> dict[int, int]:
        return {it.pid: it.memory_info().rss for it in self.processes}

    def files_open(self) -> dict[int, int]:
        return {it.pid: it.num_fds() for it in self.processes}


@pytest.fixture(params=REQUESTS, ids=lambda it: f"{it.tensor}x{it.pipeline}")
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    before = set(psutil.Process().children(recursive=True))
    layout: Layout = request.param
    folder = tmp_path / "model"
    # A layer for each stage; the only KV head is on every rank of it.
    write(Shape("LlamaForCausalLM", "llama", 32, 64, layout.pipeline, 2, 1, 16, VOCAB), folder)
    shutil.copy(MODEL_DIR / "tokenizer.json", folder)
    block_bytes = LAYER_BLOCK_BYTES * layout.size
    disk_bytes = DISK_BLOCKS * (block_bytes + HEADER_BYTES * layout.size)
    settings = {
        **SETTINGS,
        **{"kv_dram_bytes": DRAM_BLOCKS * block_bytes, "kv_disk_bytes": disk_bytes},
        **{"tensor_parallel": layout.tensor, "pipeline_parallel": layout.pipeline},
    }
    disk = tmp_path / "kv"
    load = Load("soak", str(folder), "cpu", "r1", settings=settings, kv_disk_folder=str(disk))
    built = build_executor(load, lambda step: nullcontext())
    config = built.config
    assert (config.kv_dram_blocks, config.kv_disk_blocks) == (DRAM_BLOCKS, DISK_BLOCKS)
    master = Master(config, built.executor, grammars=built.grammars, tiers=built.tiers)
    master.prefetch.choice = ALWAYS  # so small a model is computed as quickly
    yield Stand(layout, master, disk, disk_bytes, before)
    master.close()
    assert not list(disk.glob("life-*")), "blocks are left on disk"
    assert set(psutil.Process().children(recursive=True)) <= before, "a process is left"


@pytest.mark.timeout(SECONDS_MAX)
def test_everything_ends_and_nothing_is_kept(stand: Stand) -> None:
    held: dict[int, int] = {}
    opened: dict[int, int] = {}

    def look() -> None:
        held.update(stand.memory_held())
        opened.update(stand.files_open())

    requests = REQUESTS[stand.layout]
    soak = Soak(stand.master, requests, look)
    soak.run()
    assert len(held) > stand.layout.size  # every rank, and who proves grammars
    for pid, memory in stand.memory_held().items():
        assert memory - held[pid] < GROWTH_BYTES_MAX
    assert len(soak.ended) == requests
    for request in soak.ended:
        check_end(request)
    assert {request.reason for request in soak.ended} == {"stop", "length", "cancelled", "error"}
    # First come, first served within a priority: only neighbours in the batch may swap places.
    assert soak.most_overtaken <= 4 * ROWS and soak.num_measured > requests // 10
    assert soak.preemptions
    assert stand.master.prefetch.decisions["fetch"] > requests // 100
    check_baseline(stand.master)
    for pid, count in stand.files_open().items():
        assert count <= opened[pid]
    used = sum(file.stat().st_size for file in stand.disk.glob("*/*.kv"))
    assert 0 < used <= stand.disk_bytes


def check_baseline(master: Master) -> None:
    scheduler, grammars = master._scheduler, master._grammars
    scheduler.check()
    settle(master)
    assert not master.has_work and not master.num_held
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
    assert scheduler._cache.num_available == KV_BLOCKS - 1
    assert grammars is not None
    assert grammars.num_in_flight == 0 and grammars.num_workers_started == 1
    master.obey(Submit(0, [1], SamplingParams(1)))  # tells the executor of the last releases
    master.step()
    while master.has_work:
        if master.step() is None:
            wait_readable(master.wake_fds, master.seconds_to_next)
    settle(master)
    assert len(rows_of(master)) == 0


def rows_of(master: Master) -> RowMatchers:
    """What rank 0 remembers of the rows' grammars; executors stand in one another."""
    held: Any = master._runner
    while not hasattr(held, "_matchers"):
        held = held._own if hasattr(held, "_own") else held._executor
    matchers: RowMatchers = held._matchers
    return matchers


def settle(master: Master) -> None:
    """Until the last step has landed, and nothing is put away any more."""
    while master.step() is not None or master.has_work or master.cache.num_copying:
        seconds = master.seconds_to_next
        wait_readable(master.wake_fds, 1.0 if seconds is None else seconds)
    master.cache.check([])
