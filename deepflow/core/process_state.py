"""What the kernel says of a process."""

from pathlib import Path


def is_stopped(pid: int) -> bool:
    """By a signal; so slow is never taken for stopped. False where the kernel says nothing."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    # The name before it may hold anything, brackets too.
    return status.rpartition(")")[2].split()[:1] == ["T"]
