"""Paged attention of decodes in Triton: contexts in parts, and what puts them together.

A decode has one row a head, too little to keep a card busy: its context is cut, a program a part.
"""

import triton.language as tl

from services.task_executor.devices.cuda.attention_kernels import (
    ITEM_WIDTH,
    LOWEST,
    attend_keys,
    first_seen,
)
from services.task_executor.devices.cuda.jit import kernel_part, varying


@kernel_part
def keys_of_split(seen: tl.tensor, SPLITS_MAX: tl.constexpr, SPLIT_KEYS: tl.constexpr) -> tl.tensor:
    """Follows from the row alone, so that its bits do not depend on the rows beside it.

    SPLIT_KEYS: of a split, and its multiples where more splits than SPLITS_MAX would be needed.
    """
    least = (seen + SPLITS_MAX - 1) // SPLITS_MAX
    return (least + SPLIT_KEYS - 1) // SPLIT_KEYS * SPLIT_KEYS


@varying("table_stride", "splits")
def attend_decodes(
    parts: tl.tensor,  # fp32 [items, heads, splits, head_dim], where there are splits
    sums: tl.tensor,  # fp32 [items, heads, splits, 2]: highest score, sum of weights
    output: tl.tensor,
    queries: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    items: tl.tensor,
    tables: tl.tensor,
    table_stride: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    splits: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS_MAX: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
) -> None:
    """One item of one token, KV head and part of the context a program."""
    index, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    item = items + index * ITEM_WIDTH
    entry, token, position = tl.load(item), tl.load(item + 1), tl.load(item + 3)
    first, end = first_seen(position, WINDOW), position + 1
    if IS_SPLIT:
        share = keys_of_split(end - first, SPLITS_MAX, SPLIT_KEYS)
        first += split * share
        if first >= end:
            return
        end = tl.minimum(end, first + share)
    rows = tl.arange(0, QUERY_ROWS)
    heads = kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, PADDED_DIM)
    is_dim = (dims < HEAD_DIM)[None, :]
    start = queries + token.to(tl.int64) * token_stride
    asked = tl.load(start + (heads * head_stride)[:, None] + dims[None, :], mask=is_dim, other=0.0)
    weighted, highest, total = attend_keys(
        asked,
        position + rows * 0,
        first,
        end,
        key_cache,
        value_cache,
        tables + entry.to(tl.int64) * table_stride,
        kv_head,
        scale,
        KV_HEADS,
        HEAD_DIM,
        PADDED_DIM,
        BLOCK_SIZE,
        QUERY_ROWS,
        KEY_ROWS,
        WINDOW,
    )
    is_head = rows < GROUP
    is_stored = is_dim & is_head[:, None]
    if IS_SPLIT:
        places = (index.to(tl.int64) * (KV_HEADS * GROUP) + heads) * splits + split
        tl.store(parts + (places * HEAD_DIM)[:, None] + dims[None, :], weighted, mask=is_stored)
        tl.store(sums + places * 2, highest, mask=is_head)
        tl.store(sums + places * 2 + 1, total, mask=is_head)
    else:
        places = (token.to(tl.int64) * (KV_HEADS * GROUP) + heads) * HEAD_DIM
        answer = (weighted / total[:, None]).to(output.dtype.element_ty)
        tl.store(output + places[:, None] + dims[None, :], answer, mask=is_stored)


@varying("splits")
def merge_splits(
    output: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    items: tl.tensor,
    splits: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS_MAX: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr,
) -> None:
    """One item and head a program: only as many splits as its context has were written."""
    index, head = tl.program_id(0), tl.program_id(1)
    item = items + index * ITEM_WIDTH
    token, position = tl.load(item + 1), tl.load(item + 3)
    seen = position + 1 - first_seen(position, WINDOW)
    share = keys_of_split(seen, SPLITS_MAX, SPLIT_KEYS)
    count = (seen + share - 1) // share
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < HEAD_DIM
    place = (index.to(tl.int64) * HEADS + head) * splits
    highest = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    weighted = tl.full([PADDED_DIM], 0.0, tl.float32)
    for start in range(0, count, SPLIT_ROWS):
        rows = start + tl.arange(0, SPLIT_ROWS)
        is_there = rows < count
        tops = tl.load(sums + (place + rows) * 2, mask=is_there, other=LOWEST)
        totals = tl.load(sums + (place + rows) * 2 + 1, mask=is_there, other=0.0)
        loaded = tl.load(
            parts + ((place + rows) * HEAD_DIM)[:, None] + dims[None, :],
            mask=is_there[:, None] & is_dim[None, :],
            other=0.0,
        )
        raised = tl.maximum(highest, tl.max(tops, axis=0))
        weights, shrink = tl.exp2(tops - raised), tl.exp2(highest - raised)
        weighted = weighted * shrink + tl.sum(loaded * weights[:, None], axis=0)
        total = total * shrink + tl.sum(totals * weights, axis=0)
        highest = raised
    tl.store(
        output + (token.to(tl.int64) * HEADS + head) * HEAD_DIM + dims,
        (weighted / total).to(output.dtype.element_ty),
        mask=is_dim,
    )
