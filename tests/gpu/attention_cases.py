"""Attention over a paged cache in odd shapes, the same numbers on every device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.task_executor.devices.base import AttentionInputs, Device, KvShape

BLOCKS = 40


@dataclass(frozen=True, slots=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    # Steps one after the other: how many tokens each of the sequences runs.
    steps: Sequence[Sequence[int]] = ((37, 5, 16), (1, 20, 1), (1, 1, 1))


CASES = {
    "gqa-2": Case(),
    "one head for all": Case(heads=8, kv_heads=1, head_dim=128),
    "gqa-3, heads of 24": Case(heads=6, kv_heads=2, head_dim=24),
    "no sharing, heads of 16": Case(heads=3, kv_heads=3, head_dim=16),
    "heads of 40": Case(head_dim=40),
    "heads of 80": Case(head_dim=80),
    "heads of 256": Case(head_dim=256),
    "large blocks": Case(block_size=128, steps=((200, 5, 128), (1, 140, 1), (1, 1, 1))),
    "a window inside a block": Case(window=5),
    "a window over blocks": Case(window=33),
    "long decodes": Case(heads=8, kv_heads=2, head_dim=128, steps=((190, 1, 70), (1, 1, 1))),
    "one row": Case(steps=((150,), (1,), (1,))),
    "many rows": Case(steps=((3,) * 13, (1,) * 13)),
}


def run_case(device: Device, case: Case, order: Sequence[int] | None = None) -> torch.Tensor:
    """fp32 rows of every step on the host. What nobody owns in the cache is NaN all the time.

    `order`: which blocks the sequences take; the answer does not depend on it.
    """
    draw = np.random.default_rng(1)
    (kv,) = device.build_kv(KvShape(1, BLOCKS, case.block_size, case.kv_heads, case.head_dim))
    kv.keys.fill_(torch.nan)
    kv.values.fill_(torch.nan)
    taken = list(order if order is not None else range(1, BLOCKS))
    tables = _tables(case, taken)
    lengths = [0] * len(case.steps[0])
    answers = []
    for counts in case.steps:
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        step = device.begin_attention(_inputs(case, counts, lengths, tables))
        queries, keys, values = (
            _draw(draw, device, sum(counts), heads, case.head_dim)
            for heads in (case.heads, case.kv_heads, case.kv_heads)
        )
        attended = step(queries, keys, values, kv, case.window)
        answers.append(device.to_host(attended).get().float().clone())
    return torch.cat(answers)


def _draw(draw: np.random.Generator, device: Device, *shape: int) -> torch.Tensor:
    """Rounded to bf16, so that it is the same number in every dtype."""
    values = torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).bfloat16().float()
    return device.to_device(values.numpy()).to(device.dtype)


def _tables(case: Case, taken: Sequence[int]) -> torch.Tensor:
    ends = [sum(counts) for counts in zip(*case.steps, strict=True)]
    wanted = [-(-end // case.block_size) for end in ends]
    assert sum(wanted) <= len(taken)
    tables = torch.zeros(len(ends), max(wanted), dtype=torch.int32)
    left = list(taken)
    for row, count in enumerate(wanted):
        tables[row, :count] = torch.tensor([left.pop() for _ in range(count)], dtype=torch.int32)
    return tables


def _inputs(
    case: Case, counts: Sequence[int], lengths: Sequence[int], tables: torch.Tensor
) -> AttentionInputs:
    size = case.block_size
    slots = [
        int(tables[row, position // size]) * size + position % size
        for row, (count, length) in enumerate(zip(counts, lengths, strict=True))
        for position in range(length - count, length)
    ]
    width = -(-max(lengths) // size)
    return AttentionInputs(
        size, list(counts), list(lengths), tables[:, :width].contiguous(), torch.tensor(slots)
    )
