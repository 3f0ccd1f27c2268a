"""A worker process that proves a grammar harmless; worker.py says how it outlives the others."""

import logging
import select
import subprocess
import sys
import threading
from typing import IO

import msgspec

from deepflow.core.bound import bound_to_parent
from deepflow.core.sampling import Grammar
from services.task_executor.flowserve.grammar import limits
from services.task_executor.flowserve.grammar.sources import Verdict
from services.task_executor.flowserve.grammar.vocabulary import VocabularyFacts
from services.task_executor.flowserve.grammar.worker import TOO_SLOW, read_frame, write_frame

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 2
LINE_BYTES_MAX = 4096  # of what a worker writes beside its answers
_WORKER = "services.task_executor.flowserve.grammar.worker"


class WorkerLost(Exception):
    """The worker ended, or does not start, and no grammar is to blame."""


class Prover:
    """Belongs to one thread; its worker ends with that thread at the latest."""

    def __init__(self, facts: VocabularyFacts) -> None:
        self._facts = facts
        self._process: subprocess.Popen[bytes] | None = None
        self.num_starts = 0
        self._is_interrupted = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def prove(self, grammar: Grammar) -> None:
        """Raises GrammarError, or WorkerLost. A worker that somebody killed is replaced once."""
        frame = msgspec.msgpack.encode(grammar)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return self._ask(self._worker(), frame)
            except WorkerLost:
                self.close()
                if attempt == ATTEMPTS_MAX:
                    raise

    def interrupt(self) -> None:
        """For other threads: whatever waits for the worker waits no longer."""
        self._is_interrupted = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def _worker(self) -> "subprocess.Popen[bytes]":
        if self._is_interrupted:
            raise WorkerLost("the engine closes")
        if self._process is None:
            self.num_starts += 1
            self._process = subprocess.Popen(
                bound_to_parent([sys.executable, "-P", "-m", _WORKER]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # a terminal's Ctrl-C is for the engine's parent to handle
            )
            _relay_words(self._process)
            self._start(self._process)
        return self._process

    def _start(self, process: "subprocess.Popen[bytes]") -> None:
        verdict = _exchange(process, msgspec.msgpack.encode(self._facts), limits.START_SECONDS)
        if verdict is None:
            raise WorkerLost("the compiler of grammars does not start")
        if verdict.fault:
            self.close()
        verdict.require_none()

    def _ask(self, process: "subprocess.Popen[bytes]", frame: bytes) -> None:
        verdict = _exchange(process, frame, limits.COMPILE_WALL_SECONDS)
        if verdict is None:  # its computing time is limited, so it hangs without computing
            self.close()
            verdict = Verdict(TOO_SLOW)
        verdict.require_none()


def _relay_words(process: "subprocess.Popen[bytes]") -> None:
    """What a library prints, as it does when it panics, becomes lines of our log."""
    assert process.stderr is not None
    relay = threading.Thread(
        target=_log_lines,
        args=(process.stderr, process.pid),
        name="grammar-worker-log",
        daemon=True,
    )
    relay.start()


def _log_lines(words: IO[bytes], pid: int) -> None:
    """Ends with the worker, and with every hand that it forked."""
    with words:
        while line := words.readline(LINE_BYTES_MAX):
            if text := line.decode(errors="replace").rstrip():
                log.warning("the grammar worker says: %s", text, extra={"worker_pid": pid})


def _exchange(process: "subprocess.Popen[bytes]", frame: bytes, seconds: float) -> Verdict | None:
    """What it answers; None where that takes too long."""
    assert process.stdin is not None and process.stdout is not None
    receive = process.stdout.fileno()
    try:
        write_frame(process.stdin.fileno(), frame)
        poller = select.poll()
        poller.register(receive, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return None
        return msgspec.msgpack.decode(read_frame(receive), type=Verdict)
    except (EOFError, BrokenPipeError) as error:
        raise WorkerLost("the compiler of grammars was lost") from error
