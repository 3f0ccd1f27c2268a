"""How many threads compute: one for each core that is really this process's.

Two threads on one core share the units that multiply, and threads beyond a container's quota are
stopped in the middle of a product while the others wait for them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from services.task_executor.devices.cpu.control_groups import OWN, ROOT, folders, read_int

TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores(root: Path = ROOT, own: Path = OWN, topology: Path = TOPOLOGY) -> int:
    """At least one."""
    cores = count_cores(_allowed_cpus(), topology)
    return max(1, int(min(cores, cpu_quota(root, own))))


def count_cores(cpus: Iterable[int], topology: Path = TOPOLOGY) -> int:
    """Physical ones: logical CPUs of one core name the same siblings."""
    return len({_siblings(cpu, topology) for cpu in cpus})


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float:
    """CPUs' worth of time that the tightest control group leaves; infinite without a limit."""
    return min((_quota(folder) for folder in folders("cpu", root, own)), default=float("inf"))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int, topology: Path) -> str:
    folder = topology / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the new name, the old one
        try:
            return (folder / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)  # nothing is told: take it for a core


def _quota(folder: Path) -> float:
    try:
        given, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        given, period = "", ""
    if given.isdigit() and period.isdigit() and int(period):
        return int(given) / int(period)
    time, window = read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")
    return time / window if time is not None and window and time > 0 else float("inf")
