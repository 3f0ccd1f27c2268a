"""A further rank as its engine has it: a process, a ring to it and one from it."""

import logging
import os
import subprocess
import sys

from deepflow import logs
from deepflow.core.bound import bound_to_parent
from services.task_executor.flowserve.ranks.wire import RING_BYTES, Messages
from services.task_executor.flowserve.ring import Ring, wait_readable


class RemoteRank:
    def __init__(self, number: int) -> None:
        self.number = number
        self._inbox, self._outbox = Ring.create(RING_BYTES), Ring.create(RING_BYTES)
        self.writer = self._inbox.writer()
        self.answers = Messages(self._outbox.reader())
        self.marks = self._outbox.marks
        self.process = _spawn(number, self._inbox, self._outbox)
        self.pid_fd = os.pidfd_open(self.process.pid)

    @property
    def is_told(self) -> bool:
        """Something that it has not read."""
        return wait_readable((self._inbox.filled_fd,), 0)

    @property
    def is_dead(self) -> bool:
        return wait_readable((self.pid_fd,), 0)

    def close(self) -> None:
        os.close(self.pid_fd)
        self._inbox.close()
        self._outbox.close()


def _spawn(number: int, inbox: Ring, outbox: Ring) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "services.task_executor.flowserve.ranks"]
    for option, ring in (("--inbox", inbox), ("--outbox", outbox)):
        command += [option, ",".join(str(fd) for fd in ring.fds)]
    command += ["--rank", str(number), *_log_options()]
    return subprocess.Popen(
        bound_to_parent(command),
        pass_fds=(*inbox.fds, *outbox.fds),
        stdin=subprocess.DEVNULL,
        stdout=2,  # whoever speaks through our standard output expects to be alone there
    )


def _log_options() -> list[str]:
    """So that a rank logs as its engine does."""
    root = logging.getLogger()
    options = ["--log-level", logging.getLevelName(root.getEffectiveLevel())]
    for handler in root.handlers:
        if isinstance(handler.formatter, logs.JsonFormatter):
            return [*options, "--log-format", "json", "--id", handler.formatter.always["id"]]
    return [*options, "--log-format", "text"]
