"""A rank that dies, stands still or hangs ends its engine, and nothing outlives an engine."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.task_executor.flowserve.__main__ import EXIT_BROKEN
from services.task_executor.flowserve.messages import LoadFailed, Unload, Unloaded
from tests.integration.rank_rig import (
    DEADLINE_SECONDS,
    DIED,
    JOINING,
    LOADING,
    Engine,
    await_condition,
    command_of,
    make_fragile,
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


def test_a_rank_that_dies_ends_its_engine(engine: Engine) -> None:
    loaded = engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    assert (loaded.tensor_parallel, loaded.pipeline_parallel) == (2, 1)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    os.kill(rank, signal.SIGKILL)
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    assert f"rank 1 (process {rank}) died" in engine.log


def test_a_rank_that_stands_still_ends_its_engine(engine: Engine) -> None:
    engine.load(pipeline_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    os.kill(rank, signal.SIGSTOP)
    engine.ask(2)  # whoever looked away for long: the first answer may have ended before
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    assert "rank 1 was stopped by a signal" in engine.log
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


@pytest.fixture
def fragile_engine(tmp_path: Path) -> Iterator[Engine]:
    """Its ranks can be made to hang."""
    engine = Engine(tmp_path, make_fragile(tmp_path))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("split", "how"),
    [("tensor_parallel", signal.SIGUSR1), ("pipeline_parallel", signal.SIGUSR2)],
    ids=["waits", "computes"],
)
def test_a_rank_that_hangs_ends_its_engine(
    fragile_engine: Engine, split: str, how: signal.Signals
) -> None:
    engine = fragile_engine
    engine.load(**{split: 2}, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    engine.begin_to_answer()
    os.kill(rank, how)
    engine.ask(2)
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    assert "rank 1 hangs" in engine.log
    await_condition(lambda: not command_of(rank))


def test_a_rank_that_hangs_while_nobody_asks_is_seen_with_the_next_request(
    fragile_engine: Engine,
) -> None:
    engine = fragile_engine
    engine.load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    [rank] = engine.ranks()
    os.kill(rank, signal.SIGUSR1)
    engine.ask()
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    assert "rank 1 hangs" in engine.log


@pytest.mark.parametrize("moment", [LOADING, JOINING])
def test_a_rank_that_dies_ends_the_load_and_is_named(tmp_path: Path, moment: str) -> None:
    engine = Engine(tmp_path, make_fragile(tmp_path) | {"DIES_AT": moment})
    engine.begin_to_load(tensor_parallel=2, cpu_threads=2, kv_blocks=80)
    failed = engine.await_end_of_load()
    assert isinstance(failed, LoadFailed)
    assert re.fullmatch(DIED, failed.message)
    assert engine.process.wait(DEADLINE_SECONDS) == EXIT_BROKEN
    engine.close()
