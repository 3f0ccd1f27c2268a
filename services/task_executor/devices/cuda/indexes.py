"""Where the tokens of a step stand, as the attention kernels want it: one array, one upload."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from services.task_executor.devices.base import AttentionInputs

I32 = npt.NDArray[np.int32]
ITEM_WIDTH = 4  # entry, first token in the step, tokens, position of the first in its context
# Each part begins where a card loads best; Triton would compile for other places anew.
_ALIGNED = 4


@dataclass(frozen=True, slots=True)
class PagedIndexes:
    """int32, on the device."""

    slots: torch.Tensor  # [tokens]
    chunks: torch.Tensor  # [items, 4], of entries with several tokens
    decodes: torch.Tensor  # [items, 4], of entries with one
    tables: torch.Tensor  # [entries, blocks]
    # The most tokens that the context of a decode has; None: as many as fit into the tables.
    longest_decode: int | None


def upload(
    inputs: AttentionInputs, tokens_per_item: int, to_device: Callable[[np.ndarray], torch.Tensor]
) -> PagedIndexes:
    chunks, decodes = items_of(inputs, tokens_per_item)
    parts = [inputs.slots.numpy(), chunks, decodes, inputs.block_tables.numpy()]
    starts = np.cumsum([0, *(_padded(part.size) for part in parts)])
    joined = np.zeros(starts[-1], dtype=np.int32)
    for start, part in zip(starts, parts, strict=False):
        joined[start : start + part.size] = part.ravel()
    there = to_device(joined)
    slots, there_chunks, there_decodes, tables = (
        there[start : start + part.size].view(part.shape)
        for start, part in zip(starts.tolist(), parts, strict=False)
    )
    longest = int(decodes[:, 3].max()) + 1 if len(decodes) else 0
    return PagedIndexes(slots, there_chunks, there_decodes, tables, longest)


def items_of(inputs: AttentionInputs, tokens_per_item: int) -> tuple[I32, I32]:
    """Chunks in items of so many tokens, and decodes."""
    counts = np.asarray(inputs.counts, dtype=np.int32)
    starts = np.asarray(inputs.lengths, dtype=np.int32) - counts
    firsts = counts.cumsum(dtype=np.int32) - counts
    entries = np.arange(len(counts), dtype=np.int32)
    is_decode = counts == 1
    whole = np.stack([entries, firsts, counts, starts], axis=1)
    return _cut(whole[~is_decode], tokens_per_item), whole[is_decode]


def _cut(whole: I32, tokens_per_item: int) -> I32:
    pieces = -(-whole[:, 2] // tokens_per_item)
    items = whole.repeat(pieces, axis=0)
    ahead = np.arange(len(items), dtype=np.int32) - (pieces.cumsum() - pieces).repeat(pieces)
    ahead *= tokens_per_item
    items[:, 1] += ahead
    items[:, 2] = np.minimum(items[:, 2] - ahead, tokens_per_item)
    items[:, 3] += ahead
    return items


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
