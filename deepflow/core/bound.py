"""Children that never outlive their parent, not even a SIGKILL of it: the kernel sees to it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

# Runs in the child between fork and exec: ask the kernel to kill it when its parent dies, make
# sure that the parent had not died before that, then become the real program.
_TRAMPOLINE = (
    "import ctypes,os,signal,sys;"
    "ctypes.CDLL(None).prctl(1,signal.SIGKILL);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)


def bound_to_parent(command: list[str]) -> list[str]:
    """`command` as a child that ends with the thread that starts it, at the latest."""
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]


def bind_to(parent_pid: int) -> None:
    """The same for a child made by fork; called first thing in the child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
