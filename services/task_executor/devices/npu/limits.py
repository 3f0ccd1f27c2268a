"""What the fused kernels take, as their documentation has it: checked here, for they check little.

A shape outside of this fails on the card with an error number, or answers something wrong.
"""

from deepflow.core.model_spec import ModelSpec

# Kernels write and read KV in blocks of this many tokens.
BLOCK_SIZE = 128
# Of queries and keys laid out as [tokens, heads, head_dim].
HEAD_DIMS = (64, 128, 192)
HEADS_PER_KV_HEAD_MAX = 64
KV_WIDTH_MAX = 65_535  # kv_heads * head_dim
CACHE_VALUES_MAX = (1 << 31) - 1  # of one layer's keys, or its values
STEP_TOKENS_MAX = 65_536
# Rows of padding write to the trash block, each to a slot of its own.
GRAPH_ROWS_MAX = BLOCK_SIZE
ROTARY_HEADS_MAX = 999  # queries' and keys' heads turn in one call
QUANTISED_WIDTH_MAX = 65_535  # inputs or outputs of an int8 linear


def why_not(spec: ModelSpec) -> str | None:
    """Why the kernels cannot run such a model; None where they can."""
    if spec.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"heads are {spec.head_dim} wide; the attention kernel takes {known}"
    if spec.num_heads > HEADS_PER_KV_HEAD_MAX * spec.num_kv_heads:
        return (
            f"{spec.num_heads} heads share {spec.num_kv_heads} KV heads; the attention kernel "
            f"takes at most {HEADS_PER_KV_HEAD_MAX} for each"
        )
    if spec.num_kv_heads * spec.head_dim > KV_WIDTH_MAX:
        return (
            f"the keys of a token are {spec.num_kv_heads * spec.head_dim} wide, of {KV_WIDTH_MAX}"
        )
    if spec.num_heads + spec.num_kv_heads > ROTARY_HEADS_MAX:
        return f"{spec.num_heads + spec.num_kv_heads} heads turn at once, of {ROTARY_HEADS_MAX}"
    return _why_not_window(spec)


def _why_not_window(spec: ModelSpec) -> str | None:
    """A window that holds the whole context is none.

    Others are refused: the kernel's documentation says that it ignores a band where a sequence
    has one query, which is every decode.
    """
    narrow = [w for w in spec.layer_windows if w is not None and w < spec.context_length]
    if not narrow:
        return None
    return (
        f"{len(narrow)} of its layers see only the last {min(narrow)} of {spec.context_length} "
        "tokens; sliding windows are not computed there"
    )


def check_cache(layer_shape: tuple[int, int, int, int]) -> None:
    """[blocks, block_size, kv_heads, head_dim]"""
    blocks, block_size, kv_heads, head_dim = layer_shape
    if block_size != BLOCK_SIZE:
        raise ValueError(f"setting block_size is {block_size}; the device npu takes {BLOCK_SIZE}")
    values = blocks * block_size * kv_heads * head_dim
    if values > CACHE_VALUES_MAX:
        most = CACHE_VALUES_MAX // (block_size * kv_heads * head_dim)
        raise ValueError(
            f"{blocks} KV blocks are too many for the kernels of the device npu: at most {most}"
        )
