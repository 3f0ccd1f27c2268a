"""A benchmark that is told to end, or cannot begin."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from deepflow.lifecycle import bound_to_parent
from tests.servers import until

SECONDS = 60.0
TERMINATED = 143


def test_one_that_is_terminated_takes_its_weights_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepflow.cli.main", "bench", "engine", "--shape", "llama-15m"]
    process = subprocess.Popen(
        bound_to_parent(command),
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        asyncio.run(until(lambda: any(tmp_path.glob("deepflow-bench-*/*")), what="its weights"))
        process.terminate()
        assert process.wait(SECONDS) == TERMINATED
        assert not list(tmp_path.iterdir())
    finally:
        process.kill()
        process.wait()


def test_an_engine_that_cannot_run_the_model_says_why_in_a_line(tmp_path: Path) -> None:
    """5 heads cannot be split over 3 ranks."""
    bench = [sys.executable, "-m", "deepflow.cli.main", "bench", "engine", "--shape", "llama-15m"]
    ended = subprocess.run(
        bound_to_parent([*bench, "--tp", "3"]),
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "tensor_parallel is 3, but 5 query heads" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())
