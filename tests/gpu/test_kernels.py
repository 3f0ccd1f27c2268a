"""Every operation of the device on the card says what the CPU says in fp32."""

import pytest
import torch

from services.task_executor.devices.base import Device
from services.task_executor.devices.cpu.device import CpuDevice
from tests.gpu.attention_cases import BLOCKS, CASES, run_case
from tests.gpu.opened import opened
from tools.device_checks.operations import OPERATIONS, Operation
from tools.device_checks.verdict import BF16_ERROR_MAX, INT8_ERROR_MAX, OK, compare

FP32_ERROR_MAX = 2e-5  # no operand is rounded to less on the way
FLOATS = {"float32": FP32_ERROR_MAX, "bfloat16": BF16_ERROR_MAX}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_attention_over_a_cache_full_of_nan(name: str, dtype: str) -> None:
    got = run_case(opened(dtype), CASES[name])
    outcome, detail = compare(got, run_case(CpuDevice(1), CASES[name]), FLOATS[dtype])
    assert outcome == OK, detail


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "operation", [it for it in OPERATIONS if not it.is_quantised], ids=lambda it: it.name
)
def test_operations(operation: Operation, dtype: str) -> None:
    got, wanted = operation.run(opened(dtype)), operation.run(CpuDevice(1))
    outcome, detail = compare(got, wanted, FLOATS[dtype])
    assert outcome == OK, detail


@pytest.mark.gpu
@pytest.mark.parametrize(
    "operation", [it for it in OPERATIONS if it.is_quantised], ids=lambda it: it.name
)
def test_int8_operations(operation: Operation) -> None:
    got, wanted = operation.run(opened("int8")), operation.run(CpuDevice(1))
    outcome, detail = compare(got, wanted, INT8_ERROR_MAX)
    assert outcome == OK, detail


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 16, 17, 33])
def test_an_int8_row_does_not_know_its_neighbours(count: int) -> None:
    device = opened("int8")
    layer = device.pack_linear(random(device, 96, 64), random(device, 96))
    rows = random(device, 40, 64)
    rows[5] *= 1000
    together = layer(rows)[:count]
    assert torch.equal(layer(rows[:count]), together)


def random(device: Device, *shape: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return device.to_device(values.numpy()).to(device.dtype)


@pytest.mark.parametrize("name", CASES)
def test_where_its_blocks_lie_changes_no_answer(name: str) -> None:
    """Of the cases themselves, without a card."""
    case, device = CASES[name], CpuDevice(1)
    backwards = range(BLOCKS - 1, 0, -1)
    one, other = run_case(device, case), run_case(device, case, backwards)
    assert one.isfinite().all() and len(one) == sum(map(sum, case.steps))
    assert torch.equal(one, other)
