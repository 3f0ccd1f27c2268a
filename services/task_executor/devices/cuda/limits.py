"""What the kernels take: checked before weights are read."""

from deepflow.core.model_spec import ModelSpec

# Kernels find each key through the block table, so any size would do.
BLOCK_SIZE = 16
HEAD_DIM_MAX = 256  # a tile of keys, as wide as a head, has to fit into shared memory
HEADS_PER_KV_HEAD_MAX = 64  # they share one tile of queries
# Slots are int32 on the card.
SLOTS_MAX = (1 << 31) - 1
# Graphs of 1, 2, 4 ... rows.
GRAPH_ROWS_MAX = 256


def why_not(spec: ModelSpec) -> str | None:
    """Why the kernels cannot run such a model; None where they can."""
    if spec.head_dim > HEAD_DIM_MAX:
        return f"heads are {spec.head_dim} wide; the attention kernel takes up to {HEAD_DIM_MAX}"
    if spec.num_heads > HEADS_PER_KV_HEAD_MAX * spec.num_kv_heads:
        return (
            f"{spec.num_heads} heads share {spec.num_kv_heads} KV heads; the attention kernel "
            f"takes at most {HEADS_PER_KV_HEAD_MAX} for each"
        )
    return None


def check_cache(layer_shape: tuple[int, int, int, int]) -> None:
    """[blocks, block_size, kv_heads, head_dim]"""
    blocks, block_size = layer_shape[:2]
    if blocks * block_size > SLOTS_MAX:
        raise ValueError(
            f"{blocks} KV blocks are too many for the kernels of the device cuda: at most"
            f" {SLOTS_MAX // block_size}"
        )
