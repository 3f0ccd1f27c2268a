"""When a process will not come up, and what its log says about it."""

from pathlib import Path

from deepflow.lifecycle import EXIT_BAD_CONFIG
from deepflow.local.errors import StartupFailed
from deepflow.local.process import ManagedProcess
from deepflow.local.supervisor import Supervisor

FAILURES_MAX = 3
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 64 * 1024


async def first_failure(supervisor: Supervisor) -> StartupFailed:
    """Returns once a process keeps failing."""
    while True:
        change = supervisor.next_change
        for process in supervisor.all():
            if is_hopeless(process):
                name, code = process.spec.name, process.exit_code
                return failed(f"{name} keeps failing (exit code {code})", process)
        await change.wait()


def is_hopeless(process: ManagedProcess) -> bool:
    """A bad setting is as bad at the next start; anything else may pass."""
    is_bad_config = process.exit_code == EXIT_BAD_CONFIG
    return process.failures >= (1 if is_bad_config else FAILURES_MAX)


def failed(message: str, process: ManagedProcess | None) -> StartupFailed:
    if process is None:
        return StartupFailed(message)
    path = process.spec.log_file
    return StartupFailed(message, log_file=str(path), log_tail=tail(path))


def tail(path: Path) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])
