"""Linear layers in int8: exact products, rows that know nothing of each other, small errors."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.cpu.int8_kernels import (
    KERNELS,
    Int8Kernel,
    choose_kernel,
    is_exact,
)
from services.task_executor.devices.cpu.int8_linear import (
    OUTPUTS_AT_A_TIME,
    Int8Linear,
    quantize_rows,
    quantize_weight,
)

EXACT = [kernel for kernel in KERNELS if is_exact(kernel)]
EXTENT = st.integers(1, 200)
SEED = st.integers(0, 2**32)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, inputs: int, *, has_bias: bool = False) -> Int8Linear:
    weight = random(outputs, inputs, seed=outputs)
    bias = random(outputs, seed=inputs) if has_bias else None
    return Int8Linear(weight, bias, choose_kernel())


def test_the_kernel_of_this_machine_is_exact() -> None:
    assert choose_kernel() in EXACT


@pytest.mark.parametrize("kernel", EXACT, ids=lambda kernel: kernel.name)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 40), inputs=EXTENT, outputs=EXTENT, seed=SEED)
def test_products_are_those_of_integers(
    kernel: Int8Kernel, rows: int, inputs: int, outputs: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=draw)
    values = torch.randint(-kernel.levels, kernel.levels + 1, (rows, inputs), generator=draw)
    scales = torch.rand(outputs, generator=draw)
    product = kernel.multiply(
        values.to(torch.int8), kernel.pack(weight.to(torch.int8), scales.clone())
    )
    assert torch.equal(product, (values @ weight.t()).float() * scales)


@pytest.mark.parametrize(("outputs", "inputs"), [(768, 1280), (96, 2048), (1, 64), (100, 33)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_gives_the_same_bits_in_every_batch(
    outputs: int, inputs: int, has_bias: bool
) -> None:
    layer, rows = linear(outputs, inputs, has_bias=has_bias), random(130, inputs)
    rows[7] *= 1000  # an outlier beside it is nobody's business
    whole = layer(rows)
    for first, last in [(0, 1), (7, 8), (5, 9), (0, 16), (3, 36), (64, 130), (129, 130)]:
        assert torch.equal(layer(rows[first:last]), whole[first:last])


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), columns=EXTENT, power=st.integers(-20, 20), seed=SEED)
def test_quantising_errs_by_half_a_step(rows: int, columns: int, power: int, seed: int) -> None:
    values = random(rows, columns, seed=seed) * 10.0**power
    quantized, scales = quantize_rows(values, 127)
    assert quantized.abs().amax(-1).eq(127).all()
    error = (quantized.double() * scales.double() - values.double()).abs()
    assert (error <= 0.501 * scales.double()).all()


def test_a_weight_in_slices_is_the_weight_at_once() -> None:
    weight = random(2 * OUTPUTS_AT_A_TIME + 3, 8)
    quantized, scales = quantize_weight(weight)
    at_once, column = quantize_rows(weight, 127)
    assert torch.equal(quantized, at_once)
    assert torch.equal(scales, column[:, 0])


def test_errors_are_small_beside_fp32() -> None:
    weight, rows = random(300, 512), random(20, 512, seed=2)
    expected = rows @ weight.t()
    error = Int8Linear(weight, None, choose_kernel())(rows) - expected
    assert (error.norm(dim=-1) / expected.norm(dim=-1)).max() < 0.02


def test_a_row_of_zeros_gives_the_bias() -> None:
    weight, bias = random(5, 8), random(5)
    layer = Int8Linear(weight, bias, choose_kernel())
    assert torch.equal(layer(torch.zeros(2, 8)), bias.expand(2, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_stays_alone(bad: float) -> None:
    layer, rows = linear(70, 130), random(20, 130)
    expected = layer(rows)
    rows[4, 3] = bad
    output = layer(rows)
    assert not output[4].isfinite().any()
    kept = torch.arange(20) != 4
    assert torch.equal(output[kept], expected[kept])


def test_the_device_computes_around_int8_in_fp32() -> None:
    device = CpuDevice(dtype="int8")
    assert device.dtype is torch.float32
    assert isinstance(device.pack_linear(random(4, 8)), Int8Linear)


def test_a_cpu_without_vnni_is_right_too() -> None:
    """oneDNN limited to what an older CPU has: its sums of int8 products overflow if allowed to."""
    program = (
        "from services.task_executor.devices.cpu.int8_kernels import choose_kernel, is_exact\n"
        "assert is_exact(choose_kernel())"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
        timeout=120,
    )
