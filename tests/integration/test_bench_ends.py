"""A benchmark that is told to end, or cannot begin."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

from deepflow.lifecycle import bound_to_parent

# Of the round that is under way nothing must be waited for: none of these ends by itself in time.
BENCH = [sys.executable, "-m", "deepflow.cli.main", "bench"]
SECONDS = 60.0
INTERRUPTED = 130
LAST_WORDS = "deepflow: the benchmark was told to end: nothing was measured"
SMALL = ["--shape", "llama-15m"]
ENDLESS = [*SMALL, "--requests", "64", "--output", "7000"]
MOMENTS = {
    "engine, measuring the device": ("measuring", ["engine", *SMALL]),
    "engine, loading": ("starting deepflow", ["engine", *SMALL]),
    "engine on two ranks": ("deepflow gave", ["engine", *ENDLESS, "--tp", "1", "--pp", "2"]),
    "mesh, in a round": ("round 1/", ["mesh", "--rounds", "999"]),
    "fairness, in a round": ("round 1/", ["fairness", "--asks", "2", "--rounds", "999"]),
    "rtc": ("all on the device", ["rtc", *SMALL, "--rounds", "9999"]),
    "pacing": ("round 1", ["pacing", *SMALL, "--rounds", "999", "--decoders", "2"]),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: the path of a socket in it has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="df-") as made:
        yield Path(made)


@contextmanager
def bench(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """All that it starts and writes is told by its temporary folder."""
    process = subprocess.Popen(
        bound_to_parent([*BENCH, *arguments]),
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as from a terminal, which signals a whole group
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def read_until(stream: IO[str] | None, word: str) -> None:
    assert stream is not None
    said = []
    for line in stream:
        said.append(line)
        if word in line:
            return
    pytest.fail("".join(said))


def who_runs(folder: Path) -> list[str]:
    """Of what has that temporary folder, or one in it; a zombie is only not yet reaped."""
    found = []
    for process in psutil.process_iter():
        try:
            is_below = process.environ().get("TMPDIR", "").startswith(str(folder))
            if is_below and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(folder: Path, moment: str) -> None:
    word, arguments = MOMENTS[moment]
    with bench(folder, *arguments) as process:
        read_until(process.stderr, word)
        os.killpg(process.pid, signal.SIGINT)
        output, words = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (INTERRUPTED, "")
    assert words.splitlines()[-1] == LAST_WORDS and "Traceback" not in words
    assert not who_runs(folder) and not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_alone_takes_all_the_others_along(folder: Path, number: signal.Signals) -> None:
    """`kill` tells nobody else."""
    with bench(folder, "engine", *ENDLESS) as process:
        read_until(process.stderr, "hollow gave")
        assert len(who_runs(folder)) >= 3, "two engines beside it"
        process.send_signal(number)
        output, words = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (128 + number, "")
    assert words.splitlines()[-1] == LAST_WORDS
    assert not who_runs(folder) and not list(folder.iterdir())


def test_an_engine_that_cannot_run_the_model_says_why_in_a_line(folder: Path) -> None:
    """5 heads cannot be split over 3 ranks."""
    with bench(folder, "engine", *SMALL, "--tp", "3") as process:
        _, words = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "tensor_parallel is 3, but 5 query heads" in words
    assert "Traceback" not in words
    assert not list(folder.iterdir())
