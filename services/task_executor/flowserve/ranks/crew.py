"""The further ranks of one engine: spawned, told, watched, ended. None outlives the engine.

A rank that dies is noticed at once, one that a signal stops after a second; both break the crew
for good, because the others wait for it in the middle of a step.
"""

import atexit
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from deepflow import logs
from deepflow.core.bound import bound_to_parent
from deepflow.core.process_state import is_stopped
from services.task_executor.flowserve.failed_steps import EngineBroken
from services.task_executor.flowserve.ranks.messages import Failed, FromRank, Leave, ToRank
from services.task_executor.flowserve.ranks.wire import (
    LOOK_SECONDS,
    RING_BYTES,
    Messages,
    decode_from_rank,
    encode,
    send,
)
from services.task_executor.flowserve.ring import Ring, wait_readable

log = logging.getLogger(__name__)

# Looks in a row, not seconds: an engine that was stopped itself must not blame its ranks for it.
STOPPED_LOOKS_MAX = 4
LEAVE_SECONDS_MAX = 5.0
# Where a rank's end shows in a failed step first, so long for the watcher to say whose it was.
NAMING_SECONDS_MAX = 1.0

Answer = TypeVar("Answer", bound=FromRank)


class RankLost(EngineBroken):
    """A rank is gone or stands still, and with it everything that was under way."""


class Crew:
    def __init__(self, count: int) -> None:
        """Starts `count` processes: the ranks 1, 2, …  Call from a thread that stays."""
        self._lock = threading.Lock()  # plans and drawn tokens come from two threads
        self._naming = threading.Lock()
        self._fault = ""
        self._is_ending = False
        self.fault_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ranks: list[_Rank] = []
        atexit.register(self.kill)
        self._ranks += [_Rank(number) for number in range(1, count + 1)]
        self._watcher = threading.Thread(target=self._watch, name="watch-ranks", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> list[int]:
        """Of the ranks 1, 2, …"""
        return [rank.process.pid for rank in self._ranks]

    @property
    def is_broken(self) -> bool:
        return bool(self._fault)

    def require_whole(self) -> None:
        """Raises RankLost."""
        if self._fault:
            raise RankLost(self._fault)

    def broken_by(self, error: Exception) -> RankLost:
        """What to raise for a step that failed while others took part in it."""
        wait_readable((self.fault_fd,), NAMING_SECONDS_MAX)
        self._break(f"a step that all ranks share failed: {error}")
        return RankLost(self._fault)

    def tell(self, message: ToRank) -> None:
        """To all of them, encoded once. Raises RankLost."""
        record = encode(message)
        with self._lock:
            for rank in self._ranks:
                send(rank.writer, record, self.require_whole)

    def tell_each(self, make: Callable[[int], ToRank]) -> None:
        """To each its own, by number."""
        with self._lock:
            for rank in self._ranks:
                send(rank.writer, encode(make(rank.number)), self.require_whole)

    def await_each(self, kind: type[Answer]) -> list[Answer]:
        """Everybody's answer. Raises ValueError where a rank refuses, RankLost where one fails."""
        return [self._await(rank, kind) for rank in self._ranks]

    def close(self) -> None:
        """Let them go, and wait until they are gone."""
        if not self._fault:
            self._is_ending = True
            try:
                self.tell(Leave())
                for rank in self._ranks:
                    rank.process.wait(LEAVE_SECONDS_MAX)
            except (RankLost, subprocess.TimeoutExpired):
                log.warning("the ranks do not leave and are killed")
        self.kill()
        os.eventfd_write(self._closing_fd, 1)
        self._watcher.join()
        for rank in self._ranks:
            rank.close()
        os.close(self.fault_fd)
        os.close(self._closing_fd)
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """At once; whoever waits for one of them in a collective is let go by it."""
        self._is_ending = True
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()

    def _await(self, rank: "_Rank", kind: type[Answer]) -> Answer:
        while True:
            is_broken = bool(self._fault)
            if (record := rank.answers.take()) is not None:
                break
            if is_broken:  # and said nothing before that
                self.require_whole()
            wait_readable((rank.answers.fileno(), self.fault_fd), None)
        answer = decode_from_rank(record)
        if isinstance(answer, Failed):
            self._break(f"rank {rank.number} failed: {answer.message}")
            raise ValueError(answer.message) if answer.is_refusal else RankLost(self._fault)
        assert isinstance(answer, kind), f"rank {rank.number} answers {answer}, not {kind}"
        return answer

    def _watch(self) -> None:
        fds = [self._closing_fd, *(rank.pid_fd for rank in self._ranks)]
        looks = dict.fromkeys(self.pids, 0)
        while not self._fault:
            if wait_readable(fds, LOOK_SECONDS):
                dead = [rank for rank in self._ranks if wait_readable((rank.pid_fd,), 0)]
                if dead and not self._is_ending:
                    self._break(f"rank {dead[0].number} (process {dead[0].process.pid}) died")
                return
            for rank in self._ranks:
                pid = rank.process.pid
                looks[pid] = looks[pid] + 1 if is_stopped(pid) else 0
                if looks[pid] == STOPPED_LOOKS_MAX:
                    self._break(f"rank {rank.number} was stopped by a signal")

    def _break(self, fault: str) -> None:
        """Only the first fault counts: the others follow from it."""
        with self._naming:
            if self._fault:
                return
            self._fault = fault
        os.eventfd_write(self.fault_fd, 1)
        log.error("%s", fault)


class _Rank:
    def __init__(self, number: int) -> None:
        self.number = number
        self._inbox, self._outbox = Ring.create(RING_BYTES), Ring.create(RING_BYTES)
        self.writer = self._inbox.writer()
        self.answers = Messages(self._outbox.reader())
        self.process = _spawn(number, self._inbox, self._outbox)
        self.pid_fd = os.pidfd_open(self.process.pid)

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
