"""Nothing in a step waits for the card before its tokens are asked for: torch itself watches."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepflow.core.sampling import SamplingParams
from services.task_executor.devices.base import Device
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.models.graphed import DECODES_BEFORE_CAPTURE
from tests.gpu.opened import DEVICE
from tests.gpu.test_graphs import BLOCKS_PER_ROW, PROMPTS, Thread, graphed, model_of
from tests.npu.checkpoints import prompt, write
from tests.npu.rig import Rig, Running, run_mixed
from tests.unit.flowserve.plan_driver import PlanDriver

pytestmark = pytest.mark.gpu


@contextmanager
def no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not see every way to wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_a_wait(device: Device) -> None:
    ones = device.to_device(np.ones(3, dtype=np.float32))
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        ones.sum().item()


def test_steps_of_chunks_and_decodes(tmp_path: Path, device: Device) -> None:
    """The first of each kind compiles its kernels."""
    rig = Rig(write("llama: gqa-2", tmp_path), device)
    rows = [Running(prompt(length, length), [length]) for length in (9, 14)]
    late = Running(prompt(40, 8), [20])
    rig.advance([(it, len(it.token_ids)) for it in rows])
    rig.advance([(rows[0], 1), (late, 10), (rows[1], 1)])
    rig.advance([(it, 1) for it in rows])
    with no_waiting():
        rig.advance([(rows[0], 1), (late, 10), (rows[1], 1)])
        rig.advance([(it, 1) for it in rows])


def test_replays(tmp_path: Path, device: Device) -> None:
    beside = Thread()
    rig = Rig(write("llama: gqa-2", tmp_path), device, graphed(beside))
    rows = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
    beside.join()
    assert len(rows[0].token_ids) < BLOCKS_PER_ROW * 128
    rig.advance([(it, 1) for it in rows])
    before = model_of(rig).replays
    with no_waiting():
        for _ in range(3):
            rig.advance([(it, 1) for it in rows])
    assert model_of(rig).replays == before + 3


DRAWN: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
    "limits": {"temperature": 0.9, "top_p": 0.9, "top_k": 20, "seed": 5},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.4},
}


@pytest.mark.parametrize("name", DRAWN)
def test_whole_steps_that_draw(tmp_path: Path, name: str) -> None:
    """Their one wait is for the copy of what was drawn, by its event."""
    folder = write("llama: gqa-2", tmp_path)
    settings = {"kv_blocks": 64, "max_sequences": 4, "block_size": 16, "cpu_threads": 1}
    load = Load("small", str(folder), DEVICE, "", settings, dtype="float32")
    driver = PlanDriver(build_executor(load, lambda step: nullcontext()).executor)
    sampling = SamplingParams(**{"max_tokens": 20, **DRAWN[name]})
    for row in range(3):
        driver.admit(row, prompt(5 + row, row), [1 + row], sampling=sampling)
    driver.step({row: 5 + row for row in range(3)})
    driver.decode([0, 1, 2], 2)
    with no_waiting():
        driver.decode([0, 1, 2], 2)
    assert all(len(it.answer) == 5 for it in driver.rows.values())
