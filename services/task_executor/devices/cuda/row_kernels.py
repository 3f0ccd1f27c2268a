"""The small operations between linears and attention in Triton, each one pass over its rows.

All compute in fp32 and round once, where they store.
"""

import triton.language as tl

from services.task_executor.devices.cuda.jit import kernel, varying

INT8_MAX = tl.constexpr(127.0)
# A row of zeros is divided by this; so small that no row of use is touched.
SCALE_MIN = tl.constexpr(1e-30)


@kernel
def norm_rows(
    output: tl.tensor,  # [tokens, heads, WIDTH]
    total: tl.tensor,  # likewise: inputs and residual, where there is one
    inputs: tl.tensor,
    residual: tl.tensor,  # [tokens, heads, WIDTH]
    weight: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    heads: tl.tensor,
    epsilon: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
) -> None:
    """Some heads of one token a program."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * HEADS_PER_PROGRAM + tl.arange(0, HEADS_PER_PROGRAM)
    columns = tl.arange(0, PADDED_WIDTH)
    is_there = (rows < heads)[:, None] & (columns < WIDTH)[None, :]
    start = inputs + token * token_stride
    values = tl.load(
        start + (rows * head_stride)[:, None] + columns[None, :], mask=is_there, other=0.0
    ).to(tl.float32)
    places = (token * heads + rows)[:, None] * WIDTH + columns[None, :]
    if HAS_RESIDUAL:
        values += tl.load(residual + places, mask=is_there, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + places, rounded, mask=is_there)
        values = rounded.to(tl.float32)
    mean = tl.sum(values * values, axis=1) / WIDTH
    normed = values * (1.0 / tl.sqrt(mean + epsilon))[:, None]
    if HAS_WEIGHT:
        factors = tl.load(weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        normed = normed * factors[None, :]
    tl.store(output + places, normed.to(output.dtype.element_ty), mask=is_there)


@kernel
def rotate_heads(
    output: tl.tensor,  # [tokens, heads, 2 * HALF]
    inputs: tl.tensor,
    cos: tl.tensor,  # fp32 [tokens, HALF]
    sin: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    heads: tl.tensor,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    HEADS_PER_PROGRAM: tl.constexpr,
) -> None:
    """Some heads of one token a program."""
    token = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * HEADS_PER_PROGRAM + tl.arange(0, HEADS_PER_PROGRAM)
    columns = tl.arange(0, PADDED_HALF)
    is_column = columns < HALF
    is_there = (rows < heads)[:, None] & is_column[None, :]
    start = inputs + token * token_stride
    places = (rows * head_stride)[:, None] + columns[None, :]
    first = tl.load(start + places, mask=is_there, other=0.0).to(tl.float32)
    second = tl.load(start + places + HALF, mask=is_there, other=0.0).to(tl.float32)
    cosines = tl.load(cos + token * HALF + columns, mask=is_column, other=0.0)[None, :]
    sines = tl.load(sin + token * HALF + columns, mask=is_column, other=0.0)[None, :]
    places = (token * heads + rows)[:, None] * (2 * HALF) + columns[None, :]
    kind = output.dtype.element_ty
    tl.store(output + places, (first * cosines - second * sines).to(kind), mask=is_there)
    tl.store(output + places + HALF, (second * cosines + first * sines).to(kind), mask=is_there)


@kernel
def gate_rows(
    output: tl.tensor,  # [rows, width]
    gate_up: tl.tensor,  # [rows, 2 * width]
    width: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """Some columns of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_there = columns < width
    start = gate_up + row * 2 * width + columns
    gate = tl.load(start, mask=is_there, other=0.0).to(tl.float32)
    up = tl.load(start + width, mask=is_there, other=0.0).to(tl.float32)
    answer = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * width + columns, answer.to(output.dtype.element_ty), mask=is_there)


@varying("rows")
def quantise_rows(
    output: tl.tensor,  # int8 [more rows, more columns]: what is more is 0
    scales: tl.tensor,  # fp32 [more rows]
    inputs: tl.tensor,  # [rows, columns]
    rows: tl.tensor,
    columns: tl.tensor,
    output_columns: tl.tensor,
    PADDED_COLUMNS: tl.constexpr,
) -> None:
    """One row of the output a program.

    A row that is not finite has a scale that is not, and so has its product.
    """
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, PADDED_COLUMNS)
    is_there = places < tl.where(row < rows, columns, 0)
    values = tl.load(inputs + row * columns + places, mask=is_there, other=0.0).to(tl.float32)
    # The larger of a NaN and a number is the number here.
    is_bad = tl.sum((values != values).to(tl.int32), axis=0) > 0
    highest = tl.where(is_bad, float("nan"), tl.max(tl.abs(values), axis=0))
    scale = tl.where(highest < SCALE_MIN, SCALE_MIN, highest) / INT8_MAX
    shares = values / scale
    whole = tl.floor(tl.where(shares == shares, shares, 0.0) + 0.5).to(tl.int8)
    tl.store(output + row * output_columns + places, whole, mask=places < output_columns)
    tl.store(scales + row, scale)


@kernel
def scale_rows(
    output: tl.tensor,  # [rows, columns]
    product: tl.tensor,  # int32 [rows, product_columns]
    row_scales: tl.tensor,
    column_scales: tl.tensor,
    bias: tl.tensor,
    columns: tl.tensor,
    product_columns: tl.tensor,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
) -> None:
    """Some columns of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_there = places < columns
    whole = tl.load(product + row * product_columns + places, mask=is_there, other=0)
    factors = tl.load(column_scales + places, mask=is_there, other=0.0)
    exact = whole.to(tl.float32) * tl.load(row_scales + row) * factors
    if HAS_BIAS:
        exact += tl.load(bias + places, mask=is_there, other=0.0).to(tl.float32)
    tl.store(output + row * columns + places, exact.to(output.dtype.element_ty), mask=is_there)
