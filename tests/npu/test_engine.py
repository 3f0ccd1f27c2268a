"""A deployment on device 'npu' from its Load to drawn tokens, as any other device's."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from deepflow.core.sampling import SamplingParams
from services.task_executor.devices.npu.device import NpuDevice
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from tests.npu.checkpoints import prompt, write
from tests.npu.on_cpu import NpuOnCpu
from tests.npu.rig import Rig, Running
from tests.unit.flowserve.plan_driver import PlanDriver

PROMPT = prompt(140, 1)
SETTINGS = {"kv_blocks": 16, "max_sequences": 4, "cpu_threads": 1}


def load(folder: Path, **changes: Any) -> Load:
    return Load(
        "small", str(folder), "npu", **{"model_revision": "", "settings": SETTINGS, **changes}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write("llama: gqa-2", tmp_path)


@pytest.mark.parametrize("dtype", ["", "int8"])
def test_a_load_serves_what_its_model_says(folder: Path, dtype: str) -> None:
    with NpuOnCpu() as mode:
        built = build_executor(load(folder, dtype=dtype), lambda step: nullcontext())
        driver = PlanDriver(built.executor)
        driven = driver.admit(0, PROMPT, [3, 1])
        driver.prefill(0)
        driver.decode([0], 3)
        drawing = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, top_k=20, seed=5)
        drawn = driver.admit(1, prompt(20, 2), [4], sampling=drawing)
        driver.prefill(1)
        driver.decode([0, 1], 2)
        rig = Rig(folder, NpuDevice(1, is_quantised=dtype == "int8"))
        wanted = Running(list(PROMPT), [5, 6])
        rig.advance([(wanted, len(PROMPT))])
        for _ in range(3):
            rig.advance([(wanted, 1)])
    assert built.config.block_size == 128
    assert driven.token_ids[: len(wanted.token_ids)] == wanted.token_ids
    assert len(drawn.answer) == 3
    assert mode.without_kernel == set()
    assert ("npu::npu_quant_matmul" in mode.calls) == (dtype == "int8")


def test_what_the_kernels_cannot_do_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = write("llama: gqa-2", tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"head_dim": 64', '"head_dim": 80'))
    with pytest.raises(ValueError, match="heads are 80 wide; the attention kernel takes 64, 128"):
        build_executor(load(folder), lambda step: nullcontext())


def test_other_block_sizes_are_refused(folder: Path) -> None:
    settings = SETTINGS | {"block_size": 16}
    with NpuOnCpu(), pytest.raises(ValueError, match=r"setting block_size is 16; .* takes 128"):
        build_executor(load(folder, settings=settings), lambda step: nullcontext())


def test_a_dtype_that_it_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="float32"):
        build_executor(load(folder, dtype="float32"), lambda step: nullcontext())


def test_torch_itself_is_unchanged_for_the_cpu() -> None:
    """torch_npu patches torch in this process; the CPU's own results stay."""
    rows = torch.arange(6.0).view(2, 3)
    assert torch.equal(rows @ rows.T, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
