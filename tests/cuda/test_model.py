"""Whole models on the cuda device, interpreted, against the CPU: the same tokens in fp32."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from deepflow.core.devices import CUDA_DTYPES
from services.task_executor.devices.base import AttentionInputs, DecodeGraph, Device, Forward
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.cuda.decode_buffers import DecodeBuffers
from services.task_executor.devices.registry import DEVICES, TorchDevice
from services.task_executor.flowserve.executor.factory import build_executor
from services.task_executor.flowserve.messages import Load
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.graphed import DECODES_BEFORE_CAPTURE, GraphedModel
from tests.cuda.on_cpu import PROCESSORS, TritonOnCpu, multiply_bf16
from tests.integration.checkpoints import Checkpoint
from tests.npu.checkpoints import prompt, write
from tests.npu.rig import Rig, run_mixed
from tests.unit.flowserve.plan_driver import Driven, PlanDriver

multiply_bf16()
SETTINGS = {"kv_blocks": 32, "max_sequences": 4, "cpu_threads": 1}
ANSWER = 5
# Each trait of each family once, for the interpreter is slow.
CHOSEN = (
    "llama: gqa-4, biases, narrow heads",
    "llama: gqa-2, llama3 rope, odd sizes",
    "llama: linear rope, one layer, gelu",
    "mistral: window of 19, gqa-4, tied",
    "qwen2: yarn rope, upper layers slide, gqa-3",
    "qwen3: gqa-2, tied, wide heads",
    "qwen3: every other layer slides, gqa-3",
)


def open_on_cpu(threads: int | None, dtype: str = "", index: int = 0) -> Device:
    floats = torch.float32 if dtype == "float32" else torch.bfloat16
    return TritonOnCpu(floats, is_quantised=dtype == "int8")


@pytest.fixture(autouse=True)
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES._entries, "cuda", TorchDevice(open_on_cpu, CUDA_DTYPES))


def driver(folder: Path, device: str, dtype: str = "float32") -> PlanDriver:
    load = Load("small", str(folder), device, model_revision="", settings=SETTINGS, dtype=dtype)
    return PlanDriver(build_executor(load, lambda step: nullcontext()).executor)


def run(driver: PlanDriver, prompts: list[list[int]]) -> list[Driven]:
    """The second joins in chunks while the first one decodes; then both decode."""
    first = driver.admit(0, prompts[0], [9, 3, 20, 7])
    driver.prefill(0)
    second = driver.admit(1, prompts[1], [5, 6, 2])
    driver.step({0: 1, 1: 9})
    driver.step({0: 1, 1: len(prompts[1]) - 9})
    driver.decode([1, 0], ANSWER - 3)
    return [first, second]


@pytest.mark.parametrize("shape", CHOSEN)
def test_it_answers_what_the_cpu_answers(tmp_path: Path, shape: str) -> None:
    checkpoint = Checkpoint(tmp_path, shape)
    prompts = [checkpoint.prompt(33, 1), checkpoint.prompt(17, 2)]
    got = run(driver(tmp_path, "cuda"), prompts)
    wanted = run(driver(tmp_path, "cpu"), prompts)
    for one, other in zip(got, wanted, strict=True):
        assert one.answer == other.answer and len(one.answer) >= ANSWER - 2
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize(("dtype", "close"), [("bfloat16", 0.1), ("int8", 0.3)])
def test_lower_precision_is_close(tmp_path: Path, dtype: str, close: float) -> None:
    write("llama: gqa-2", tmp_path)
    exact, rough = driver(tmp_path, "cpu"), driver(tmp_path, "cuda", dtype)
    asked = prompt(40, 3)
    for it in (exact, rough):
        it.admit(0, asked, [4, 9, 1])
        it.prefill(0)
    (one,), (other,) = (it.rows[0].logprobs for it in (exact, rough))
    assert one == pytest.approx(other, abs=close) and one != other


class ReplayOnCpu:
    """What a captured decode computes, computed each time."""

    def __init__(self, buffers: DecodeBuffers, forward: Forward) -> None:
        self._buffers = buffers
        self._forward = forward

    def replay(
        self, token_ids: torch.Tensor, positions: torch.Tensor, inputs: AttentionInputs
    ) -> torch.Tensor:
        self._buffers.fill(token_ids, positions, inputs)
        return self._buffers.run(self._forward)[: len(token_ids)]


class GraphsOnCpu(TritonOnCpu):
    graph_rows_max = 4
    block_size = 128  # of the rig

    def capture_decode(self, forward: Forward, rows: int, blocks_per_row: int) -> DecodeGraph:
        return ReplayOnCpu(DecodeBuffers(self, PROCESSORS, rows, blocks_per_row), forward)


def graphed(rig: Rig, model: Model) -> Model:
    return GraphedModel(
        model,
        rig.device,
        rig.kv,
        max_sequences=4,
        blocks_per_row=3,
        run_beside=lambda work: work(),
    )


def test_replays_say_what_the_cpu_says(tmp_path: Path) -> None:
    """Of three rows in a graph of four; two cross into a block that somebody left full of NaN."""
    folder = write("qwen3: head norms, yarn rope, wide heads", tmp_path)
    prompts = [prompt(150, 1), prompt(120, 2), prompt(119, 3)]
    steps = DECODES_BEFORE_CAPTURE + 3
    wanted = run_mixed(Rig(folder, CpuDevice(1)), prompts, steps)
    rig = Rig(folder, GraphsOnCpu(), graphed)
    for kv in rig.kv:
        kv.keys.fill_(torch.nan)
        kv.values.fill_(torch.nan)
    got = run_mixed(rig, prompts, steps)
    assert isinstance(rig.model, GraphedModel) and rig.model.replays == 3
    for one, other in zip(got, wanted, strict=True):
        assert one.token_ids == other.token_ids
        logits = torch.stack(one.logits).log_softmax(-1)
        assert torch.allclose(logits, torch.stack(other.logits).log_softmax(-1), atol=1e-4)
