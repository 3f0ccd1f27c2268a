"""How much memory this process may still take: the machine's, or its container's where less."""

from pathlib import Path

from services.task_executor.devices.cpu.control_groups import OWN, ROOT, folders, read_int

_MEMINFO = Path("/proc/meminfo")


def memory_available(root: Path = ROOT, meminfo: Path = _MEMINFO, cgroups: Path = OWN) -> int:
    """Never more than any control group around this process leaves."""
    found = (_room(folder) for folder in folders("memory", root, cgroups))
    return min([_meminfo_available(meminfo), *(room for room in found if room is not None)])


def _room(folder: Path) -> int | None:
    """None where the group does not exist here or has no limit.

    Files that the kernel only keeps in case they are read again are given back when needed.
    """
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = read_int(folder / limit_name), read_int(folder / usage_name)
        if limit is not None and used is not None:
            return max(0, limit - used + _reclaimable(folder / "memory.stat"))
    return None


def _reclaimable(stat: Path) -> int:
    try:
        rows = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0


def _meminfo_available(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} names no MemAvailable")
