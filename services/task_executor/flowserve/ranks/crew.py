"""The further ranks of one engine: spawned, told, watched, ended. None outlives the engine.

A rank that dies, is stopped or hangs breaks the crew for good, because the others wait for it in
the middle of a step.
"""

import atexit
import logging
import os
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

from services.task_executor.flowserve.failed_steps import EngineBroken
from services.task_executor.flowserve.marks import Marks
from services.task_executor.flowserve.ranks.beside import Beside
from services.task_executor.flowserve.ranks.messages import Failed, FromRank, Leave, ToRank
from services.task_executor.flowserve.ranks.remote_rank import RemoteRank
from services.task_executor.flowserve.ranks.watch import Watch
from services.task_executor.flowserve.ranks.wire import decode_from_rank, encode, send
from services.task_executor.flowserve.ring import wait_readable

log = logging.getLogger(__name__)

LEAVE_SECONDS_MAX = 5.0
# Where a rank's end shows in a failed step first, so long for the watcher to say whose it was.
NAMING_SECONDS_MAX = 1.0

Answer = TypeVar("Answer", bound=FromRank)
Done = TypeVar("Done")


class RankLost(EngineBroken):
    """A rank is gone or stands still, and with it everything that was under way."""


class RankRefused(ValueError):
    """The model, the settings or the machine is at fault, not the rank."""


class Crew:
    def __init__(self, count: int) -> None:
        """Starts `count` processes: the ranks 1, 2, …  Call from a thread that stays."""
        self._lock = threading.Lock()  # plans and drawn tokens come from two threads
        self._naming = threading.Lock()
        self._fault = ""
        self._is_ending = False
        self.fault_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.own_marks = Marks.private()  # rank 0's
        self._ranks: list[RemoteRank] = []
        atexit.register(self.kill)
        self._ranks += [RemoteRank(number) for number in range(1, count + 1)]
        self._watch = Watch(self.own_marks, self._ranks, self._lose)

    @property
    def is_broken(self) -> bool:
        return bool(self._fault)

    def require_whole(self) -> None:
        """Raises RankLost."""
        if self._fault:
            raise RankLost(self._fault)

    def broken_by(self, error: Exception) -> RankLost:
        """What to raise for something that failed while others took part in it."""
        wait_readable((self.fault_fd,), NAMING_SECONDS_MAX)
        self._break(f"what all ranks share failed: {error}")
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
        """Everybody's answer. Raises RankRefused and RankLost."""
        return [self._await(rank, kind) for rank in self._ranks]

    def beside(self, work: Callable[[], Done]) -> Done:
        """Do our share of something. Raises as `await_each` does, as soon as a rank is lost."""
        share = Beside(work)
        try:
            return share.result(self._require_each)
        except RankRefused:
            share.finish()  # it needs nobody, and the engine goes on without this model
            raise

    @property
    def answer_fds(self) -> list[int]:
        """Readable when a rank has said something."""
        return [rank.answers.fileno() for rank in self._ranks]

    def take_answers(self, kind: type[Answer]) -> list[Answer]:
        """What they said since the last call, without waiting. Raises RankLost."""
        answers: list[Answer] = []
        for rank in self._ranks:
            while (record := rank.answers.take()) is not None:
                answer = decode_from_rank(record)
                if isinstance(answer, Failed):
                    self._break(f"rank {rank.number} failed: {answer.message}")
                    self.require_whole()
                assert isinstance(answer, kind), f"rank {rank.number} says {answer}, not {kind}"
                answers.append(answer)
        return answers

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
        self._watch.close()
        for rank in self._ranks:
            rank.close()
        os.close(self.fault_fd)
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """At once; whoever waits for one of them in a collective is let go by it."""
        self._is_ending = True
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()

    def _await(self, rank: RemoteRank, kind: type[Answer]) -> Answer:
        while True:
            is_broken = bool(self._fault)
            if (record := rank.answers.take()) is not None:
                break
            if is_broken:  # and said nothing before that
                self.require_whole()
            wait_readable((rank.answers.fileno(), self.fault_fd), None)
        answer = decode_from_rank(record)
        self._check(rank, answer)
        assert isinstance(answer, kind), f"rank {rank.number} answers {answer}, not {kind}"
        return answer

    def _require_each(self) -> None:
        """Raises what a lost rank said last, if it said something."""
        if not self._fault:
            return
        for rank in self._ranks:
            while (record := rank.answers.take()) is not None:
                self._check(rank, decode_from_rank(record))
        self.require_whole()

    def _check(self, rank: RemoteRank, answer: FromRank) -> None:
        if isinstance(answer, Failed):
            self._break(f"rank {rank.number} failed: {answer.message}")
            raise RankRefused(answer.message) if answer.is_refusal else RankLost(self._fault)

    def _lose(self, fault: str) -> None:
        if not self._is_ending:
            self._break(fault)

    def _break(self, fault: str) -> None:
        """Only the first fault counts: the others follow from it."""
        with self._naming:
            if self._fault:
                return
            self._fault = fault
        os.eventfd_write(self.fault_fd, 1)
        log.error("%s", fault)
