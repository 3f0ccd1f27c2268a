"""An engine process over several ranks, spoken to as the shell does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.messages import (
    FromEngine,
    Load,
    Loaded,
    Progress,
    StepOutput,
    Submit,
    ToEngine,
)
from services.task_executor.flowserve.ring import Ring, decode_from_engine, encode

DEADLINE_SECONDS = 90.0
ENDLESS = SamplingParams(900, temperature=0.0, ignore_eos=True)
# Python runs this as sitecustomize.py. Whoever gets one of these signals hangs for good, at
# whatever its first thread does then, or in the next step. A rank dies at what DIES_AT names.
FRAGILE = """
import ctypes, os, signal, sys, threading

def wait_for_oneself(*_):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def compute_for_ever(*_):
    while True:
        pass

def hang_in_steps(hang):
    from services.task_executor.flowserve.executor.row_table import RowTable
    RowTable.lay_out = lambda *_: hang()

def die_at(event, arguments):
    if any(os.environ["DIES_AT"] in str(it) for it in arguments):
        os.kill(os.getpid(), signal.SIGKILL)

signal.signal(signal.SIGUSR1, wait_for_oneself)
signal.signal(signal.SIGUSR2, compute_for_ever)
signal.signal(signal.SIGVTALRM, lambda *_: hang_in_steps(wait_for_oneself))
# A library that never gives the interpreter back.
signal.signal(signal.SIGPROF, lambda *_: hang_in_steps(ctypes.PyDLL(None).pause))
if "DIES_AT" in os.environ and "services.task_executor.flowserve.ranks" in sys.orig_argv:
    sys.addaudithook(die_at)
"""
# Where a rank begins to read its weights, and to meet the others.
LOADING, JOINING = "config.json", "GLOO_SOCKET_IFNAME"
DIED = r"rank 1 \(process \d+\) died"


def make_fragile(folder: Path) -> dict[str, str]:
    """The environment of an engine that can be hurt."""
    (folder / "sitecustomize.py").write_text(FRAGILE)
    return {"PYTHONPATH": str(folder)}


class Engine:
    """The shell's half of the conversation, and a look at the engine's children."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        """`folder` gets its log."""
        self.rings = Ring.create(), Ring.create()
        self.writer, self.reader = self.rings[0].writer(), self.rings[1].reader()
        command = [sys.executable, "-m", "services.task_executor.flowserve"]
        for option, ring in zip(("--inbox", "--outbox"), self.rings, strict=True):
            command += [option, ",".join(map(str, ring.fds))]
        fds = [fd for ring in self.rings for fd in ring.fds]
        self._log = folder / "engine.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, pass_fds=fds, stderr=log, env={**os.environ, **(environment or {})}
            )
        self._received: list[FromEngine] = []

    def send(self, message: ToEngine) -> None:
        self.writer.send(encode(message), DEADLINE_SECONDS)

    def receive(self) -> FromEngine:
        while not self._received:
            assert self.reader.wait(DEADLINE_SECONDS), "the engine says nothing"
            self._received += map(decode_from_engine, self.reader.drain())
        return self._received.pop(0)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def begin_to_load(self, **settings: int) -> None:
        self.send(Load("demo", str(MODEL_DIR), "cpu", "r1", settings=settings))

    def await_end_of_load(self) -> FromEngine:
        while isinstance(message := self.receive(), Progress):
            pass
        return message

    def load(self, **settings: int) -> Loaded:
        self.begin_to_load(**settings)
        loaded = self.await_end_of_load()
        assert isinstance(loaded, Loaded), loaded
        return loaded

    def ask(self, handle: int = 1) -> None:
        self.send(Submit(handle, [5, 6, 7], ENDLESS))

    def begin_to_answer(self) -> None:
        self.ask()
        while not (isinstance(output := self.receive(), StepOutput) and output.token_ids):
            pass

    def ranks(self) -> list[int]:
        return ranks_of(self.process.pid)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for ring in self.rings:
            ring.close()


def ranks_of(engine: int) -> list[int]:
    """Process ids of those that hold a share of its model."""
    children = Path(f"/proc/{engine}/task/{engine}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    return [pid for pid in pids if b"flowserve.ranks" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def await_condition(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it does not come to pass"
        os.sched_yield()
