"""Launches the kernels of the small operations."""

import torch

from services.task_executor.devices.cuda.jit import OPTIONS, card_of
from services.task_executor.devices.cuda.row_kernels import (
    gate_rows,
    norm_rows,
    quantise_rows,
    rotate_heads,
    scale_rows,
)

NARROW_MAX = 512  # rows up to here share a program
NARROW_ROWS = 8
COLUMNS = 1024  # of a program where columns do not depend on each other


def rms_norm(inputs: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Over the last dimension of [tokens, width] or [tokens, heads, width]."""
    normed = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    _norm(normed, None, inputs, None, weight, epsilon)
    return normed


def add_rms_norm(
    inputs: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of their sum, and the sum."""
    normed, total = (
        torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device) for _ in "nt"
    )
    _norm(normed, total, inputs, residual.contiguous(), weight, epsilon)
    return normed, total


def _norm(
    normed: torch.Tensor,
    total: torch.Tensor | None,
    inputs: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    epsilon: float,
) -> None:
    rows = inputs[:, None] if inputs.ndim == 2 else inputs
    tokens, heads, width = rows.shape
    assert rows.stride(2) == 1
    together = NARROW_ROWS if width <= NARROW_MAX and heads > 1 else 1
    with card_of(inputs):
        norm_rows[tokens, -(-heads // together)](
            normed,
            # What the kernel does not touch may be anything.
            normed if total is None else total,
            rows,
            normed if residual is None else residual,
            normed if weight is None else weight,
            rows.stride(0),
            rows.stride(1),
            heads,
            epsilon,
            WIDTH=width,
            PADDED_WIDTH=_power(width),
            HEADS_PER_PROGRAM=together,
            HAS_RESIDUAL=residual is not None,
            HAS_WEIGHT=weight is not None,
            num_warps=_warps(together * width),
            **OPTIONS,
        )


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """heads: [tokens, heads, head_dim]; cos and sin: fp32 [tokens, head_dim / 2]."""
    tokens, count, width = heads.shape
    assert heads.stride(2) == 1 and cos.is_contiguous() and sin.is_contiguous()
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    with card_of(heads):
        rotate_heads[tokens, -(-count // NARROW_ROWS)](
            turned,
            heads,
            cos,
            sin,
            heads.stride(0),
            heads.stride(1),
            count,
            HALF=width // 2,
            PADDED_HALF=_power(width // 2),
            HEADS_PER_PROGRAM=NARROW_ROWS,
            num_warps=_warps(NARROW_ROWS * width),
            **OPTIONS,
        )
    return turned


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    rows, width = len(gate_up), gate_up.shape[-1] // 2
    assert gate_up.is_contiguous()
    answer = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    with card_of(gate_up):
        gate_rows[rows, -(-width // COLUMNS)](answer, gate_up, width, COLUMNS=COLUMNS, **OPTIONS)
    return answer


def quantise(inputs: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [rows, columns], no fewer than there are, and the fp32 scale of each row there is."""
    assert inputs.is_contiguous()
    device = inputs.device
    whole = torch.empty(rows, columns, dtype=torch.int8, device=device)
    scales = torch.empty(rows, dtype=torch.float32, device=device)
    with card_of(inputs):
        quantise_rows[rows,](
            whole,
            scales,
            inputs,
            len(inputs),
            inputs.shape[1],
            columns,
            PADDED_COLUMNS=_power(columns),
            num_warps=_warps(columns),
            **OPTIONS,
        )
    return whole, scales[: len(inputs)]


def scale(
    product: torch.Tensor,
    row_scales: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What int32 [more rows, more columns] stands for: [rows, columns]."""
    assert product.is_contiguous()
    rows, columns = len(row_scales), len(column_scales)
    output = torch.empty(rows, columns, dtype=dtype, device=product.device)
    with card_of(product):
        scale_rows[rows, -(-columns // COLUMNS)](
            output,
            product,
            row_scales,
            column_scales,
            output if bias is None else bias,
            columns,
            product.shape[1],
            COLUMNS=COLUMNS,
            HAS_BIAS=bias is not None,
            **OPTIONS,
        )
    return output


def _power(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _warps(values: int) -> int:
    """So that a thread has up to about sixteen of a program's values, where a card allows it."""
    return min(max(_power(values) // 512, 1), 16)
