"""The packed products of our own kernels, held against fp64."""

from pathlib import Path

import pytest
import torch

from services.task_executor.devices.cpu.native.build import NoLibrary, build
from services.task_executor.devices.cpu.native.packed_linear import (
    SOURCES,
    PackedLinear,
    PackedProducts,
)

# Inputs, outputs.
SHAPES = [(1, 1), (3, 33), (17, 65), (64, 16), (257, 40), (512, 97), (1100, 64), (2048, 96)]
STORED = [torch.float32, torch.float16, torch.bfloat16]
ROWS_MAX = 700  # more than meet the weight at a time


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def products(request: pytest.FixtureRequest) -> PackedProducts:
    """What this machine cannot have is skipped; what is wrong with a kernel fails."""
    source: Path = request.param
    try:
        library = build(source)
    except NoLibrary as error:
        if "does not compile" in str(error) and "#error" not in str(error):
            raise
        pytest.skip(f"{source.stem} cannot be had here: {error}")
    try:
        return PackedProducts(library)
    except OSError as error:
        if "does not let it" not in str(error):
            raise
        pytest.skip(f"{source.stem} cannot be used here: {error}")


def _linear(
    products: PackedProducts,
    inputs: int,
    outputs: int,
    *,
    has_bias: bool,
    stored: torch.dtype = torch.float32,
) -> tuple[PackedLinear, torch.Tensor, torch.Tensor | None]:
    """Of a weight that a checkpoint keeps in `stored`."""
    draw = torch.Generator().manual_seed(inputs * outputs)
    weight = torch.randn(outputs, inputs, generator=draw).to(stored).float()
    bias = torch.randn(outputs, generator=draw) if has_bias else None
    return PackedLinear(weight, bias, products), weight, bias


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("rows", [1, 2, 12, 13, 16, 17, 32, 33, 48, ROWS_MAX])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_it_is_what_fp64_says(
    products: PackedProducts, inputs: int, outputs: int, rows: int, stored: torch.dtype
) -> None:
    linear, weight, bias = _linear(products, inputs, outputs, has_bias=rows % 2 == 0, stored=stored)
    values = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
    exact = values.double() @ weight.double().t() + (0 if bias is None else bias.double())
    largest = values.double().abs() @ weight.double().abs().t() + 1
    assert ((linear(values) - exact).abs() <= 1e-6 * largest).all()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_no_bit_of_a_row_depends_on_the_others(
    products: PackedProducts, inputs: int, outputs: int, stored: torch.dtype
) -> None:
    linear, _, _ = _linear(products, inputs, outputs, has_bias=True, stored=stored)
    values = torch.randn(ROWS_MAX, inputs, generator=torch.Generator().manual_seed(7))
    together = linear(values)
    for first, last in ((0, 1), (5, 17), (17, 30), (30, 230), (50, 99), (699, 700)):
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


def test_numbers_of_any_size_keep_their_digits(products: PackedProducts) -> None:
    """What is cut into parts is whole when they are added up, at both ends of the exponents."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.rand(40, 1, generator=draw) + 1
    values = (torch.rand(30, 1, generator=draw) + 1) * 2.0 ** torch.arange(-100, 110, 7)[:, None]
    exact = values.double() @ weight.double().t()
    assert ((PackedLinear(weight, None, products)(values) - exact).abs() <= 3e-7 * exact).all()


def test_a_checkpoint_of_bf16_takes_half_the_memory(products: PackedProducts) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(4))
    whole, half = products.pack(weight), products.pack(weight.bfloat16().float())
    assert 2 * len(half.memory) == len(whole.memory) == 4 * weight.numel()
