"""The KV memory of an emulated accelerator: what was written where, and nothing else.

    cells  [blocks, block_size] uint64: a hash of (token, position) in the slot it was written to

Reading a context sums its cells, each times BASE ** (the position it was read at). So a lost,
swapped, stale or foreign block changes the sum and with it the next token; the block size does not.
"""

import numpy as np
import numpy.typing as npt

from deepflow.core.mixing import I64, U64, mix

_TOKEN_STEP = np.uint64(0x9FB21C651E98DF25)
_BASE = 0xD6E8FEB86659FD93  # odd and 3 modulo 8: its powers repeat only after 2**62


class FingerprintCache:
    def __init__(self, blocks: int, block_size: int, max_blocks_per_sequence: int) -> None:
        self.block_size = block_size
        self.cells = np.zeros((blocks, block_size), dtype=np.uint64)
        self._flat_cells = self.cells.reshape(-1)
        self._block_weights = _powers(pow(_BASE, block_size, 1 << 64), max_blocks_per_sequence)
        self._offset_weights = _powers(_BASE, block_size)
        # Row n weighs a last block that holds n tokens: what lies behind them is not ours.
        offsets = np.arange(block_size)
        filled = np.arange(block_size + 1)[:, None] > offsets
        self._tail_weights = np.where(filled, self._offset_weights, np.uint64(0))

    def write(self, slots: I64, token_ids: npt.NDArray[np.int32], positions: I64) -> None:
        """slots, token_ids, positions: [tokens]."""
        hashes = token_ids.astype(np.uint64)
        hashes *= _TOKEN_STEP
        hashes += positions.view(np.uint64)
        self._flat_cells[slots] = mix(hashes)

    def read(self, tables: npt.NDArray[np.int32], rows: I64, lengths: I64) -> U64:
        """One digest per sequence: tables [max_rows, max_blocks], rows and lengths [sequences]."""
        block_counts = (lengths + (self.block_size - 1)) // self.block_size
        ends = block_counts.cumsum()
        firsts = ends - block_counts
        lasts = ends - 1
        # All blocks of all sequences, one after the other: [total] indexes inside their sequence.
        indexes = np.arange(ends[-1]) - firsts.repeat(block_counts)
        entries = (rows * tables.shape[1]).repeat(block_counts)
        entries += indexes
        cells = self.cells.take(tables.reshape(-1).take(entries), axis=0)  # [total, block_size]
        digests = np.einsum("bo,o->b", cells, self._offset_weights)
        tails = lengths - (block_counts - 1) * self.block_size
        digests[lasts] = np.einsum("bo,bo->b", cells[lasts], self._tail_weights[tails])
        digests *= self._block_weights.take(indexes)
        return np.add.reduceat(digests, firsts)


def _powers(base: int, count: int) -> U64:
    """base ** 0, base ** 1, ... modulo 2 ** 64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return factors.cumprod(dtype=np.uint64)
