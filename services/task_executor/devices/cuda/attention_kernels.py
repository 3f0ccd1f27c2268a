"""Paged attention in Triton: what runs on the card.

Work is a list of items, int32 [items, 4]: an entry (a row of the block tables), its first token in
the step, how many tokens, and where the first of them stands in its context. A program computes
one item for the heads that share one KV head, so that their keys and values are read once.

No masked position is ever read: a NaN that an earlier owner left in a block cannot leak, and no
block needs to be wiped.
"""

import triton.language as tl

from services.task_executor.devices.cuda.jit import kernel, kernel_part, varying

# Lower than every score, and finite: minus infinity from itself would be NaN.
LOWEST = tl.constexpr(-1e30)
ITEM_WIDTH = tl.constexpr(4)


@kernel
def write_kv(
    keys: tl.tensor,
    values: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slots: tl.tensor,
    key_token_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_token_stride: tl.tensor,
    value_head_stride: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
) -> None:
    """One token and KV head a program."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < HEAD_DIM
    key = tl.load(keys + token * key_token_stride + head * key_head_stride + dims, mask=is_dim)
    value = tl.load(
        values + token * value_token_stride + head * value_head_stride + dims, mask=is_dim
    )
    place = (tl.load(slots + token).to(tl.int64) * KV_HEADS + head) * HEAD_DIM
    tl.store(key_cache + place + dims, key, mask=is_dim)
    tl.store(value_cache + place + dims, value, mask=is_dim)


@kernel_part
def first_seen(position: tl.tensor, WINDOW: tl.constexpr) -> tl.tensor:
    """Of a token's keys; a window of 0 is none."""
    if WINDOW:
        return tl.maximum(position - WINDOW + 1, 0)
    return position * 0


@kernel_part
def attend_keys(
    queries: tl.tensor,  # [rows, PADDED_DIM]
    positions: tl.tensor,  # [rows], of the queries
    first: tl.tensor,
    end: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Keys from `first` to before `end`: weighted values, highest score, sum of the weights.

    Scores are powers of two.
    """
    dims = tl.arange(0, PADDED_DIM)
    is_dim = dims < HEAD_DIM
    highest = tl.full([QUERY_ROWS], LOWEST, tl.float32)
    total = tl.full([QUERY_ROWS], 0.0, tl.float32)
    weighted = tl.full([QUERY_ROWS, PADDED_DIM], 0.0, tl.float32)
    for start in range(first, end, KEY_ROWS):
        seats = start + tl.arange(0, KEY_ROWS)
        is_there = seats < end
        blocks = tl.load(table + seats // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
        places = ((blocks * BLOCK_SIZE + seats % BLOCK_SIZE) * KV_HEADS + kv_head) * HEAD_DIM
        keys = tl.load(
            key_cache + places[None, :] + dims[:, None],
            mask=is_there[None, :] & is_dim[:, None],
            other=0.0,
        )
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        is_seen = is_there[None, :] & (seats[None, :] <= positions[:, None])
        if WINDOW:
            is_seen = is_seen & (seats[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(highest - raised)
        values = tl.load(
            value_cache + places[:, None] + dims[None, :],
            mask=is_there[:, None] & is_dim[None, :],
            other=0.0,
        )
        weighted = weighted * shrink[:, None]
        weighted += tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        highest = raised
    return weighted, highest, total


@varying("table_stride")
def attend_chunks(
    output: tl.tensor,  # [tokens, heads, head_dim]
    queries: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    items: tl.tensor,
    tables: tl.tensor,
    table_stride: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    KEY_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> None:
    """One item and KV head a program."""
    item, kv_head = items + tl.program_id(0) * ITEM_WIDTH, tl.program_id(1)
    entry, token, count = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    position = tl.load(item + 3)
    # A row is a head of a token; rows that are left over repeat the last token.
    rows = tl.arange(0, QUERY_ROWS)
    ahead = tl.minimum(rows // GROUP, count - 1)
    tokens, heads = (token + ahead).to(tl.int64), kv_head * GROUP + rows % GROUP
    dims = tl.arange(0, PADDED_DIM)
    is_dim = (dims < HEAD_DIM)[None, :]
    asked = tl.load(
        queries + (tokens * token_stride + heads * head_stride)[:, None] + dims[None, :],
        mask=is_dim,
        other=0.0,
    )
    weighted, _, total = attend_keys(
        asked,
        position + ahead,
        first_seen(position, WINDOW),
        position + count,
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
    places = (tokens * (KV_HEADS * GROUP) + heads) * HEAD_DIM
    tl.store(
        output + places[:, None] + dims[None, :],
        (weighted / total[:, None]).to(output.dtype.element_ty),
        mask=is_dim & (rows < count * GROUP)[:, None],
    )
