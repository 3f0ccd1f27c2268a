"""How much the attention kernels load at a time, and into how many parts contexts are cut."""

from dataclasses import dataclass

# Matrix instructions want no less, on each side.
DOT_MIN = 16
# Of queries, keys or values: several of each fit into any card's shared memory.
TILE_BYTES = 16_384
# Exact products of fp32 are no matrix instructions: larger tiles of them compile for long.
TILE_ROWS_BYTES = 128
# A part of a context that is worth a program of its own.
SPLIT_KEYS = 256
SPLITS_MIN, SPLITS_MAX = 8, 128
PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True, slots=True)
class Tiles:
    """What a program works on at a time, each a power of two."""

    chunk_rows: int  # tokens times the heads that share a KV head
    decode_rows: int  # heads that share a KV head
    keys: int


@dataclass(frozen=True, slots=True)
class Splits:
    """Of the contexts of decodes."""

    keys: int  # of one; a multiple of it where there would be too many
    most: int

    def of(self, seen: int) -> int:
        """The most that any context of up to so many keys is cut into."""
        return min(self.most, -(-seen // self.keys))


def choose_tiles(group: int, head_dim: int, itemsize: int) -> Tiles:
    """group: heads that share a KV head."""
    rows = min(TILE_BYTES // (padded(head_dim) * itemsize), TILE_ROWS_BYTES // itemsize)
    heads = padded(group)
    return Tiles(chunk_rows=max(rows, heads), decode_rows=heads, keys=rows)


def choose_splits(kv_heads: int, processors: int) -> Splits:
    """So many that one row alone is work for each processor.

    Nothing of it follows from a batch: a row's bits would depend on the rows beside it.
    """
    wanted = -(-PROGRAMS_PER_PROCESSOR * processors // kv_heads)
    return Splits(SPLIT_KEYS, min(max(wanted, SPLITS_MIN), SPLITS_MAX))


def padded(size: int) -> int:
    """The power of two that a tile of so many rows or columns has."""
    return max(DOT_MIN, 1 << (size - 1).bit_length())
