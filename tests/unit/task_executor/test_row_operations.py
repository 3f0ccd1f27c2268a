"""The compiled operations on rows against torch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.cpu.int8_kernels import choose_kernel
from services.task_executor.devices.cpu.int8_linear import SCALE_MIN, Int8Linear, quantize_rows
from services.task_executor.devices.cpu.native.row_operations import RowOperations, begin_build
from services.task_executor.devices.plain import PlainDevice

EPSILON = 1e-6
ROWS, COLUMNS, SEED = st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**32)


@pytest.fixture(scope="module")
def native() -> RowOperations:
    built = begin_build().wait()
    if built is None:
        pytest.skip("no C compiler here: torch does it, which other tests cover")
    return built


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    columns=COLUMNS,
    power=st.integers(-33, 30),
    levels=st.sampled_from([63, 127]),
    seed=SEED,
)
def test_quantising_gives_the_bits_of_torch(
    native: RowOperations, rows: int, columns: int, power: int, levels: int, seed: int
) -> None:
    values = random(rows, columns, seed=seed) * 10.0**power
    quantized, scales = native.quantize(values, levels, SCALE_MIN)
    expected, expected_scales = quantize_rows(values, levels)
    assert torch.equal(quantized, expected)
    assert same_bits(scales, expected_scales)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_has_such_a_scale(native: RowOperations, bad: float) -> None:
    values = random(3, 70)
    values[1, 5] = bad
    _, scales = native.quantize(values, 127, SCALE_MIN)
    assert scales.isfinite()[:, 0].tolist() == [True, False, True]


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, columns=COLUMNS, has_weight=st.booleans(), seed=SEED)
def test_norms_are_those_of_torch(
    native: RowOperations, rows: int, columns: int, has_weight: bool, seed: int
) -> None:
    inputs, weight = random(rows, columns, seed=seed), random(columns, seed=seed + 1)
    residual = random(rows, columns, seed=seed + 2)
    used = weight if has_weight else None
    expected = F.rms_norm(inputs, (columns,), used, EPSILON)
    assert torch.allclose(native.rms_norm(inputs, used, EPSILON), expected, atol=1e-5, rtol=1e-5)
    normed, total = native.add_rms_norm(inputs, residual, weight, EPSILON)
    assert torch.equal(total, inputs + residual)
    expected = F.rms_norm(inputs + residual, (columns,), weight, EPSILON)
    assert torch.allclose(normed, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, columns=COLUMNS, scale=st.sampled_from([1e-3, 1.0, 50.0, 1e4]), seed=SEED)
def test_swiglu_is_that_of_torch(
    native: RowOperations, rows: int, columns: int, scale: float, seed: int
) -> None:
    gate, up = scale * random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    found = native.swiglu(torch.cat([gate, up], dim=-1))
    assert torch.allclose(found, F.silu(gate) * up, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_a_row_gives_the_same_bits_in_every_batch(native: RowOperations, name: str) -> None:
    def run(rows: torch.Tensor) -> torch.Tensor:
        return native.swiglu(rows) if name == "swiglu" else native.rms_norm(rows, None, EPSILON)

    rows = random(130, 778)
    whole = run(rows)
    for first, last in [(0, 1), (5, 9), (64, 130)]:
        assert same_bits(run(rows[first:last].clone()), whole[first:last])


def test_an_int8_layer_gives_the_same_bits_with_it(native: RowOperations) -> None:
    weight, rows = random(65, 130), random(20, 130, seed=2)
    kernel = choose_kernel()
    without = Int8Linear(weight, None, kernel)(rows)
    assert same_bits(Int8Linear(weight, None, kernel, lambda: native)(rows), without)


def test_what_does_not_fit_is_left_to_torch(native: RowOperations) -> None:
    device, heads = CpuDevice(dtype="float32"), random(4, 6, 8)[:, :3]
    assert not native.fits(heads)
    assert torch.equal(
        device.rms_norm(heads, None, EPSILON), PlainDevice.rms_norm(device, heads, None, EPSILON)
    )
    halves = random(4, 8).bfloat16()
    assert device.swiglu(halves).dtype is torch.bfloat16


@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 1, 2), (3, 5, 18), (70, 16, 64)])
def test_heads_are_turned_as_by_torch(
    native: RowOperations, tokens: int, heads: int, head_dim: int
) -> None:
    # Values of a fused projection lie behind each token's queries and keys.
    turning = random(tokens, heads + 2, head_dim)[:, :heads]
    angles = random(tokens, head_dim // 2, seed=2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    assert native.fits_heads(turning, cos)
    first, second = turning.chunk(2, dim=-1)
    expected = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    torch.testing.assert_close(native.rotate(turning, cos, sin), expected, rtol=1e-6, atol=1e-6)


def test_heads_that_lie_otherwise_are_left_to_torch(native: RowOperations) -> None:
    cos = torch.ones(3, 1, 4)
    assert not native.fits_heads(random(3, 8, 5).transpose(1, 2), cos)
    assert not native.fits_heads(random(3, 5, 8).bfloat16(), cos)
