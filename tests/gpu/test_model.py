"""Whole models on the card: transformers' greedy tokens and logprobs, and the CPU's in bf16."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from services.task_executor.devices.base import Device
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from tests.gpu.opened import DEVICE, opened
from tests.gpu.test_graphs import check_alike
from tests.integration.checkpoints import SHAPES, Checkpoint
from tests.npu.checkpoints import ODD, prompt, write
from tests.npu.rig import Rig, Running, run_mixed
from tests.unit.flowserve.plan_driver import Driven, PlanDriver

TOKENS = 24
KV_BLOCKS = 64
BLOCKS_A_ROW = 6
LENGTHS = (37, 1, 16, 63)


def blocks_of(row: int) -> list[int]:
    """Scattered, no two rows alike, never the trash block."""
    return [1 + (row + 8 * index) * 5 % (KV_BLOCKS - 1) for index in range(BLOCKS_A_ROW)]


def run_joining(driver: PlanDriver, prompts: list[list[int]], tokens: int) -> list[Driven]:
    """Row by row joins in chunks while the earlier ones decode; then all decode."""
    driven: list[Driven] = []
    for row, token_ids in enumerate(prompts):
        driven.append(driver.admit(row, token_ids, blocks_of(row)))
        for position in range(0, len(token_ids), 11):
            chunk = min(11, len(token_ids) - position)
            driver.step({row: chunk} | dict.fromkeys(range(row), 1))
    while behind := [row for row, it in enumerate(driven) if len(it.answer) < tokens]:
        driver.decode(behind[::-1], 1)
    return driven


def driver_on(folder: Path, device: str) -> PlanDriver:
    settings = {"kv_blocks": KV_BLOCKS, "max_sequences": 8, "block_size": 16, "cpu_threads": 1}
    load = Load("small", str(folder), device, "", settings, dtype="float32")
    return PlanDriver(build_executor(load, lambda step: nullcontext()).executor)


def check_against_transformers(folder: Path, shape: str, device: str) -> None:
    checkpoint = Checkpoint(folder, shape)
    prompts = [checkpoint.prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    driven = run_joining(driver_on(folder, device), prompts, TOKENS)
    for it, token_ids in zip(driven, prompts, strict=True):
        reference = checkpoint.greedy(token_ids, TOKENS)
        assert it.answer[:TOKENS] == reference.token_ids
        assert it.logprobs[:TOKENS] == pytest.approx(reference.logprobs, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_says_what_transformers_says(tmp_path: Path, shape: str) -> None:
    check_against_transformers(tmp_path, shape, DEVICE)


def test_so_does_the_cpu_by_the_same_check(tmp_path: Path) -> None:
    check_against_transformers(tmp_path, "mistral: window of 19, gqa-4, tied", "cpu")


PROMPTS = [prompt(150, 1), prompt(9, 2), prompt(128, 3)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ODD)
def test_fp32_says_what_the_cpu_says(tmp_path: Path, name: str) -> None:
    folder = write(name, tmp_path)
    wanted = run_mixed(Rig(folder, CpuDevice(1)), PROMPTS, 20)
    got = run_mixed(Rig(folder, opened("float32")), PROMPTS, 20)
    check_alike(got, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "cosine"), [("bfloat16", 0.995), ("int8", 0.99)])
@pytest.mark.parametrize("name", ODD)
def test_fewer_bits_stay_close(tmp_path: Path, name: str, dtype: str, cosine: float) -> None:
    folder = write(name, tmp_path)
    assert closeness(folder, opened(dtype), CpuDevice(1, dtype)) > cosine


def closeness(folder: Path, one: Device, other: Device) -> float:
    """Cosine of what two devices say of the same prompts, run in one step each."""

    def said(device: Device) -> torch.Tensor:
        rows = [Running(list(it), [2 * row + 1, 2 * row + 2]) for row, it in enumerate(PROMPTS)]
        return Rig(folder, device).step([(row, len(row.token_ids)) for row in rows])

    return float(torch.cosine_similarity(said(one), said(other), dim=-1).min())


def test_closeness_knows_near_from_far(tmp_path: Path) -> None:
    folder = write("llama: gqa-2", tmp_path)
    assert closeness(folder, CpuDevice(1), CpuDevice(1)) == pytest.approx(1.0)
    assert 0.99 < closeness(folder, CpuDevice(1, "bfloat16"), CpuDevice(1)) < 1.0
