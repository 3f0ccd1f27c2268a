"""How much memory this process may still take: the machine's, or its container's where less."""

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/proc/self/cgroup")


def memory_available(root: Path = _ROOT, meminfo: Path = _MEMINFO, cgroups: Path = _CGROUPS) -> int:
    """Never more than any control group around this process leaves."""
    rooms = [room for folder in _folders(root, cgroups) if (room := _room(folder)) is not None]
    return min([_meminfo_available(meminfo), *rooms])


def _folders(root: Path, cgroups: Path) -> list[Path]:
    """This process's group and every one around it, of either version of control groups."""
    found = [root, root / "memory"]
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [base.joinpath(*parts[: length + 1]) for length in range(len(parts))]
    return found


def _room(folder: Path) -> int | None:
    """None where the group does not exist here or has no limit.

    Files that the kernel only keeps in case they are read again are given back when needed.
    """
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _read_int(folder / limit_name), _read_int(folder / usage_name)
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


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
