"""What a container leaves counts as much as what the machine has."""

from pathlib import Path

import pytest

from services.task_executor.devices.cpu.memory import memory_available

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 1048576 kB\n")
    (tmp_path / "self").write_text("0::/\n")
    return tmp_path


def available(machine: Path) -> int:
    return memory_available(machine / "cgroup", machine / "meminfo", machine / "self")


def limit(folder: Path, *, limit: str, used: int, cached: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    two = version == 2
    (folder / ("memory.max" if two else "memory.limit_in_bytes")).write_text(f"{limit}\n")
    (folder / ("memory.current" if two else "memory.usage_in_bytes")).write_text(f"{used}\n")
    key = "inactive_file" if two else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cached}\n")


def test_without_a_container_it_is_the_machines(machine: Path) -> None:
    assert available(machine) == 1024 * MIB


def test_no_limit_is_no_limit(machine: Path) -> None:
    limit(machine / "cgroup", limit="max", used=7)
    assert available(machine) == 1024 * MIB


def test_a_container_leaves_less(machine: Path) -> None:
    limit(machine / "cgroup", limit=str(512 * MIB), used=300 * MIB)
    assert available(machine) == 212 * MIB


def test_what_the_kernel_caches_for_us_is_not_taken(machine: Path) -> None:
    limit(machine / "cgroup", limit=str(512 * MIB), used=300 * MIB, cached=100 * MIB)
    assert available(machine) == 312 * MIB


def test_the_tightest_group_around_this_process_counts(machine: Path) -> None:
    (machine / "self").write_text("0::/pod/box\n")
    limit(machine / "cgroup/pod", limit=str(400 * MIB), used=300 * MIB)
    limit(machine / "cgroup/pod/box", limit=str(512 * MIB), used=100 * MIB)
    assert available(machine) == 100 * MIB


def test_the_older_control_groups_are_read_too(machine: Path) -> None:
    (machine / "self").write_text("5:cpu:/elsewhere\n4:memory:/box\n")
    limit(machine / "cgroup/memory/box", limit=str(64 * MIB), used=1 * MIB, version=1)
    assert available(machine) == 63 * MIB


def test_a_group_over_its_limit_leaves_nothing(machine: Path) -> None:
    limit(machine / "cgroup", limit=str(MIB), used=2 * MIB)
    assert available(machine) == 0
