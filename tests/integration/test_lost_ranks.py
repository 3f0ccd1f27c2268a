"""A rank that dies or stands still ends its engine, and nothing outlives an engine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepflow.core.sampling import SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.__main__ import EXIT_BROKEN
from services.task_executor.flowserve.messages import (
    FromEngine,
    Load,
    Loaded,
    Progress,
    StepOutput,
    Submit,
    ToEngine,
    Unload,
    Unloaded,
)
from services.task_executor.flowserve.ring import Ring, decode_from_engine, encode

DEADLINE_SECONDS = 90.0
ENDLESS = SamplingParams(900, temperature=0.0, ignore_eos=True)


class Engine:
    """The shell's half of the conversation, and a look at the engine's children."""

    def __init__(self) -> None:
        self.rings = Ring.create(), Ring.create()
        self.writer, self.reader = self.rings[0].writer(), self.rings[1].reader()
        command = [sys.executable, "-m", "services.task_executor.flowserve"]
        for option, ring in zip(("--inbox", "--outbox"), self.rings, strict=True):
            command += [option, ",".join(map(str, ring.fds))]
        fds = [fd for ring in self.rings for fd in ring.fds]
        self.process = subprocess.Popen(command, pass_fds=fds)
        self._received: list[FromEngine] = []

    def send(self, message: ToEngine) -> None:
        self.writer.send(encode(message), DEADLINE_SECONDS)

    def receive(self) -> FromEngine:
        while not self._received:
            assert self.reader.wait(DEADLINE_SECONDS), "the engine says nothing"
            self._received += map(decode_from_engine, self.reader.drain())
        return self._received.pop(0)

    def load(self, **settings: int) -> Loaded:
        self.send(Load("demo", str(MODEL_DIR), "cpu", "r1", settings=settings))
        while isinstance(message := self.receive(), Progress):
            pass
        assert isinstance(message, Loaded), message
        return message

    def begin_to_answer(self) -> None:
        self.send(Submit(1, [5, 6, 7], ENDLESS))
        while not (isinstance(output := self.receive(), StepOutput) and output.token_ids):
            pass

    def ranks(self) -> list[int]:
        """Process ids of those that hold a share of the model."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()]
        return [pid for pid in pids if b"flowserve.ranks" in command_of(pid)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for ring in self.rings:
            ring.close()


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


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def test_a_rank_that_dies_ends_its_engine(engine: Engine) -> None:
    loaded = engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    assert (loaded.tensor_parallel, loaded.pipeline_parallel) == (2, 1)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    os.kill(rank, signal.SIGKILL)
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN


def test_a_rank_that_stands_still_ends_its_engine(engine: Engine) -> None:
    engine.load(pipeline_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    os.kill(rank, signal.SIGSTOP)
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    await_condition(lambda: not command_of(rank))


def test_a_killed_engine_leaves_no_rank_and_an_unloaded_one_neither(engine: Engine) -> None:
    engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.send(Unload())
    while not isinstance(engine.receive(), Unloaded):
        pass
    assert not command_of(rank)
    engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.process.kill()
    await_condition(lambda: not command_of(rank))


def test_an_engine_that_is_told_to_end_takes_its_ranks_along(engine: Engine) -> None:
    engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    engine.process.terminate()
    assert engine.process.wait(DEADLINE_SECONDS) == 0
    assert not command_of(rank)
