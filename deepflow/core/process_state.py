"""What the kernel says of a process."""

from dataclasses import dataclass
from pathlib import Path

_MAJOR_FAULTS, _UTIME, _STIME = 9, 11, 12  # among the fields behind the name
_TICK_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all threads of a process, since they began."""

    cpu_ns: int = 0
    delayed_ns: int = 0  # ready to run, while others had the CPU; 0 where the kernel does not say
    disk_faults: int = 0  # pages that had to be read before it could go on
    is_on_disk: bool = False  # does one of them wait for a disk at this moment?


def is_stopped(pid: int) -> bool:
    """By a signal; so slow is never taken for stopped. False where the kernel says nothing."""
    return _fields(Path(f"/proc/{pid}/stat"))[:1] == ["T"]


def usage_of(pid: int) -> Usage:
    """Zeros for a process that is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return Usage()
    every = [_usage_of_thread(thread) for thread in threads]
    return Usage(
        sum(it.cpu_ns for it in every),
        sum(it.delayed_ns for it in every),
        sum(it.disk_faults for it in every),
        any(it.is_on_disk for it in every),
    )


def _usage_of_thread(thread: Path) -> Usage:
    fields = _fields(thread / "stat")
    if not fields:
        return Usage()  # it has ended meanwhile
    try:
        cpu_ns, delayed_ns, _ = map(int, (thread / "schedstat").read_text().split())
    except (OSError, ValueError):  # a kernel without it
        cpu_ns, delayed_ns = (int(fields[_UTIME]) + int(fields[_STIME])) * _TICK_NS, 0
    return Usage(cpu_ns, delayed_ns, int(fields[_MAJOR_FAULTS]), fields[0] == "D")


def _fields(stat: Path) -> list[str]:
    """Those behind the name, which may hold anything, brackets too; empty where there are none."""
    try:
        return stat.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
