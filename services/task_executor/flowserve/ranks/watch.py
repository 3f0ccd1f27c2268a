"""The eyes of an engine on its ranks: a thread that sees who died, was stopped or hangs."""

import os
import threading
import time
from collections.abc import Callable, Sequence

from deepflow.core.process_state import is_stopped
from services.task_executor.flowserve.eye import Eye
from services.task_executor.flowserve.marks import Mark, Marks
from services.task_executor.flowserve.ranks.remote_rank import RemoteRank
from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.vigil import (
    LOOK_SECONDS,
    Verdict,
    allowed_seconds,
    judge,
)

# Looks in a row, not seconds: an engine that was stopped itself must not blame its ranks for it.
STOPPED_LOOKS_MAX = 8


class Watch:
    def __init__(
        self, own: Marks, ranks: Sequence[RemoteRank], report: Callable[[str], None]
    ) -> None:
        """`own` are the marks of rank 0, here; `report` is told once, what is wrong."""
        self._ranks = ranks
        self._report = report
        self._own = Eye.on(own, os.getpid())
        self._eyes = [Eye.on(rank.marks, rank.process.pid) for rank in ranks]
        self._stopped_looks = [0] * len(ranks)
        self._closing_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._watch, name="watch-ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._closing_fd, 1)
        self._thread.join()
        os.close(self._closing_fd)

    def _watch(self) -> None:
        fds = [self._closing_fd, *(rank.pid_fd for rank in self._ranks)]
        fault = ""
        while not fault:
            if wait_readable(fds, LOOK_SECONDS):
                dead = [rank for rank in self._ranks if rank.is_dead]
                if dead:
                    self._report(f"rank {dead[0].number} (process {dead[0].process.pid}) died")
                return
            fault = self._find_fault()
        self._report(fault)

    def _find_fault(self) -> str:
        now = time.monotonic()
        looks = [self._own.look(now)]
        for index, (rank, eye) in enumerate(zip(self._ranks, self._eyes, strict=True)):
            looks.append(eye.look(now, is_told=rank.is_told))
            self._stopped_looks[index] += 1
            if not is_stopped(rank.process.pid):
                self._stopped_looks[index] = 0
            elif self._stopped_looks[index] == STOPPED_LOOKS_MAX:
                return f"rank {rank.number} was stopped by a signal"
        if any(self._stopped_looks):
            return ""  # soon it is said what it is: stopped, and no hang
        verdict = judge([eye.silence for eye in (self._own, *self._eyes)], looks)
        return _describe(verdict, looks[verdict.rank].mark) if verdict else ""


def _describe(verdict: Verdict, mark: Mark) -> str:
    return (
        f"rank {verdict.rank} hangs: {verdict.doing} for {verdict.seconds:.1f} s without a sign,"
        f" where {allowed_seconds(mark):.1f} s are the most"
    )
