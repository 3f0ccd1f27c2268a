"""One thread a core, and no more than a container's quota."""

import math
import os
from pathlib import Path

import pytest
import torch

from services.task_executor.devices.cpu.cores import count_cores, cpu_quota, usable_cores
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.cpu.huge_pages import huge_zeros


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "self").write_text("0::/pod/engine\n1:cpu,cpuacct:/pod\n")
    return tmp_path


def limit(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(text)


def limit_old(folder: Path, quota: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")


def topology(folder: Path, name: str, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / name).write_text(text + "\n")
    return folder


def quota(machine: Path) -> float:
    return cpu_quota(machine / "cgroup", machine / "self")


def test_no_limit_is_infinite(machine: Path) -> None:
    assert quota(machine) == math.inf
    limit(machine / "cgroup", "max 100000\n")
    limit_old(machine / "cgroup" / "cpu", -1)
    assert quota(machine) == math.inf


def test_the_tightest_group_counts(machine: Path) -> None:
    limit(machine / "cgroup" / "pod", "250000 100000\n")
    assert quota(machine) == 2.5
    limit(machine / "cgroup" / "pod" / "engine", "400000 100000\n")
    assert quota(machine) == 2.5


def test_groups_of_the_first_version_count(machine: Path) -> None:
    limit_old(machine / "cgroup" / "cpu" / "pod", 150_000)
    assert quota(machine) == 1.5


@pytest.mark.parametrize("text", ["", "many", "100000", "x y", "5 0"])
def test_what_cannot_be_read_limits_nothing(machine: Path, text: str) -> None:
    limit(machine / "cgroup", text)
    assert quota(machine) == math.inf


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_threads_of_one_core_count_once(tmp_path: Path, name: str) -> None:
    siblings = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    folder = topology(tmp_path, name, siblings)
    assert count_cores([0, 1, 4, 5], folder) == 2
    assert count_cores([0, 4], folder) == 1
    assert count_cores([1, 4], folder) == 2
    assert count_cores([7, 8], folder) == 2  # of which nothing is known


def test_never_less_than_one_nor_more_than_the_quota(machine: Path) -> None:
    def usable() -> int:
        return usable_cores(machine / "cgroup", machine / "self", machine / "topology")

    assert usable() == len(os.sched_getaffinity(0))
    limit(machine / "cgroup", "20000 100000\n")
    assert usable() == 1


def test_the_device_takes_what_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        CpuDevice(threads=1)
        assert torch.get_num_threads() == 1
        CpuDevice()
        assert torch.get_num_threads() == usable_cores()
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # who has set it knows better
        CpuDevice()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_kv_memory_is_aligned_zeros() -> None:
    tensor = huge_zeros((3, 1000, 257), torch.float32)
    assert tensor.data_ptr() % (2 << 20) == 0
    assert tensor.shape == (3, 1000, 257)
    assert not tensor.any()
    tensor[2, 999, 256] = 7
    assert tensor.sum() == 7
