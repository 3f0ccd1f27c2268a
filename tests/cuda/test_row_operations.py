"""Norms, rotary positions, SwiGLU and int8 in Triton, interpreted, against plain torch."""

import pytest
import torch

from services.task_executor.devices.cuda import row_operations
from services.task_executor.devices.cuda.linear import Int8Linear
from services.task_executor.devices.plain import PlainDevice
from tests.cuda.on_cpu import TritonOnCpu

DTYPES = [torch.float32, torch.bfloat16]
DEVICE = TritonOnCpu()


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.dtype == other.dtype and one.shape == other.shape
    close = 1e-5 if one.dtype == torch.float32 else 4e-2
    assert torch.allclose(one.float(), other.float(), atol=close, rtol=close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 96), (1, 1000), (5, 64), (2, 3, 40), (4, 17, 24)])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=2)
    for chosen in (weight, None):
        wanted = PlainDevice.rms_norm(DEVICE, inputs, chosen, 1e-2)
        assert_close(row_operations.rms_norm(inputs, chosen, 1e-2), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [96, 1000])
def test_the_norm_of_a_sum(width: int, dtype: torch.dtype) -> None:
    inputs, residual = (random(3, width, dtype=dtype, seed=seed) for seed in (1, 2))
    weight = random(width, dtype=dtype, seed=3)
    got = row_operations.add_rms_norm(inputs, residual, weight, 1e-5)
    wanted = PlainDevice.add_rms_norm(DEVICE, inputs, residual, weight, 1e-5)
    assert_close(got[0], wanted[0])
    assert_close(got[1], wanted[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 10), (9, 64), (17, 48)])
def test_heads_turn(heads: int, dim: int, dtype: torch.dtype) -> None:
    """Heads as a model hands them over: some of those of a fused product."""
    fused = random(3, heads + 2, dim, dtype=dtype)
    angles = random(3, dim // 2, seed=2)
    turning = fused[:, :heads]
    got = row_operations.rotate(turning, *DEVICE.lay_out_angles(angles.cos(), angles.sin(), 0.9))
    cos, sin = (it[:, None] * 0.9 for it in (angles.cos(), angles.sin()))
    assert_close(got, PlainDevice.rotate(DEVICE, turning.float(), (cos, sin)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 1024, 1500])
def test_swiglu(width: int, dtype: torch.dtype) -> None:
    gate_up = random(3, 2 * width, dtype=dtype)
    assert_close(row_operations.swiglu(gate_up), PlainDevice.swiglu(DEVICE, gate_up))


def test_norms_of_views_read_what_the_view_shows() -> None:
    """The heads that are normed are some of those of a fused product."""
    fused = random(3, 7, 16)
    wanted = PlainDevice.rms_norm(DEVICE, fused[:, :5].contiguous(), None, 1e-5)
    assert_close(row_operations.rms_norm(fused[:, :5], None, 1e-5), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 96, 40), (20, 33, 1100), (17, 16, 16)])
def test_int8_products_are_close_to_exact_ones(
    rows: int, inputs: int, outputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight, values = random(outputs, inputs, dtype=dtype), random(rows, inputs, dtype=dtype, seed=2)
    bias = random(outputs, dtype=dtype, seed=3) if has_bias else None
    got = Int8Linear(weight, bias)(values)
    wanted = torch.nn.functional.linear(values.float(), weight.float())
    wanted = wanted if bias is None else wanted + bias.float()
    assert got.dtype == dtype and got.shape == wanted.shape
    error = (got.float() - wanted).norm() / wanted.norm()
    assert error < 0.02


def test_quantised_rows_are_whole_parts_of_their_largest() -> None:
    values = torch.tensor([[1.0, -127.0, 63.6], [0.0, 0.0, 0.0], [0.5, 0.25, -0.1]])
    whole, scales = row_operations.quantise(values, 5, 16)
    assert whole[0, :3].tolist() == [1, -127, 64] and whole[2, :3].tolist() == [127, 64, -25]
    assert not whole[1].any() and not whole[3:].any() and not whole[:, 3:].any()
    assert torch.allclose(scales[[0, 2]], torch.tensor([1.0, 0.5 / 127]))


def test_an_int8_rows_bits_do_not_depend_on_the_rows_beside_it() -> None:
    linear = Int8Linear(random(40, 96), random(40, seed=2))
    values = random(20, 96, seed=3)
    values[5] *= 1000
    values[6] = torch.nan
    together = linear(values)
    assert together[6].isnan().all() and together[:6].isfinite().all()
    for row in (0, 4, 5, 19):
        assert torch.equal(linear(values[row : row + 1])[0], together[row])
