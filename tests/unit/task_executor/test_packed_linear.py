"""The packed products of our own kernel, held against fp64."""

import pytest
import torch

from services.task_executor.devices.cpu.native import packed_linear
from services.task_executor.devices.cpu.native.packed_linear import PackedLinear, PackedProducts

SHAPES = [(1, 1), (3, 33), (64, 16), (257, 40), (512, 97), (2048, 96)]  # inputs, outputs
ROWS_MAX = 400  # more than meet the weight at a time


@pytest.fixture(scope="module")
def products() -> PackedProducts:
    built = packed_linear.begin_build().wait()
    if built is None:
        pytest.skip("this CPU or its compiler cannot have the kernel")
    return built


def _linear(
    products: PackedProducts, inputs: int, outputs: int, *, has_bias: bool
) -> tuple[PackedLinear, torch.Tensor, torch.Tensor | None]:
    draw = torch.Generator().manual_seed(inputs * outputs)
    weight = torch.randn(outputs, inputs, generator=draw)
    bias = torch.randn(outputs, generator=draw) if has_bias else None
    return PackedLinear(weight, bias, products), weight, bias


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 12, 13, 32, ROWS_MAX])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_it_is_what_fp64_says(
    products: PackedProducts, inputs: int, outputs: int, rows: int, has_bias: bool
) -> None:
    linear, weight, bias = _linear(products, inputs, outputs, has_bias=has_bias)
    values = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
    exact = values.double() @ weight.double().t() + (0 if bias is None else bias.double())
    largest = values.double().abs() @ weight.double().abs().t() + 1
    assert ((linear(values) - exact).abs() <= 1e-6 * largest).all()


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_no_bit_of_a_row_depends_on_the_others(
    products: PackedProducts, inputs: int, outputs: int
) -> None:
    linear, _, _ = _linear(products, inputs, outputs, has_bias=True)
    values = torch.randn(ROWS_MAX, inputs, generator=torch.Generator().manual_seed(7))
    together = linear(values)
    for first, last in ((0, 1), (5, 17), (17, 30), (30, 230), (399, 400)):
        assert torch.equal(linear(values[first:last]), together[first:last])


def test_a_row_that_is_not_finite_spoils_no_other(products: PackedProducts) -> None:
    linear, _, _ = _linear(products, 64, 40, has_bias=False)
    values = torch.randn(14, 64, generator=torch.Generator().manual_seed(1))
    expected = linear(values)
    values[5, 3] = torch.nan
    spoilt = linear(values)
    assert spoilt[5].isnan().all()
    others = [row for row in range(14) if row != 5]
    assert torch.equal(spoilt[others], expected[others])


def test_strides_and_leading_dimensions(products: PackedProducts) -> None:
    linear, _, _ = _linear(products, 64, 40, has_bias=False)
    values = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(2))[..., ::2]
    expected = linear(values.contiguous().view(10, 64)).view(2, 5, 40)
    assert torch.equal(linear(values), expected)
    assert linear(values[0, :0]).shape == (0, 40)
