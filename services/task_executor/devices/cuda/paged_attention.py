"""Launches the attention kernels: write, then chunks, then decodes, whose contexts are split."""

import math
from dataclasses import dataclass

import torch

from services.task_executor.devices.base import LayerKv
from services.task_executor.devices.cuda.attention_kernels import attend_chunks, write_kv
from services.task_executor.devices.cuda.decode_kernels import attend_decodes, merge_splits
from services.task_executor.devices.cuda.indexes import PagedIndexes
from services.task_executor.devices.cuda.jit import OPTIONS
from services.task_executor.devices.cuda.tiles import Splits, Tiles, padded

SPLIT_ROWS = 16  # splits merged at a time
NO_WINDOW = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """What the kernels are compiled for."""

    group: int  # heads that share a KV head
    kv_heads: int
    head_dim: int
    block_size: int

    @classmethod
    def of(cls, queries: torch.Tensor, kv: LayerKv) -> "Shape":
        _, block_size, kv_heads, head_dim = kv.keys.shape
        return cls(queries.shape[1] // kv_heads, kv_heads, head_dim, block_size)

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    @property
    def scale(self) -> float:
        """Of scores, which are powers of two."""
        return math.log2(math.e) / math.sqrt(self.head_dim)


class PagedAttention:
    """Over KV of one shape."""

    def __init__(self, shape: Shape, tiles: Tiles, splits: Splits) -> None:
        self._shape = shape
        self._tiles = tiles
        self._splits = splits

    @property
    def tokens_per_item(self) -> int:
        """How many of a chunk's tokens a program takes."""
        return self._tiles.chunk_rows // self._shape.group

    def write(
        self, keys: torch.Tensor, values: torch.Tensor, kv: LayerKv, indexes: PagedIndexes
    ) -> None:
        shape = self._shape
        assert keys.stride(-1) == values.stride(-1) == 1
        write_kv[len(keys), shape.kv_heads](
            keys,
            values,
            kv.keys,
            kv.values,
            indexes.slots,
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            KV_HEADS=shape.kv_heads,
            HEAD_DIM=shape.head_dim,
            PADDED_DIM=padded(shape.head_dim),
            num_warps=1,
            **OPTIONS,
        )

    def attend(
        self, queries: torch.Tensor, kv: LayerKv, indexes: PagedIndexes, window: int | None
    ) -> torch.Tensor:
        """[tokens, heads, head_dim]"""
        assert queries.stride(-1) == 1
        output = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        if len(indexes.chunks):
            self._attend_chunks(output, queries, kv, indexes, window or NO_WINDOW)
        if len(indexes.decodes):
            self._attend_decodes(output, queries, kv, indexes, window or NO_WINDOW)
        return output

    def _attend_chunks(
        self,
        output: torch.Tensor,
        queries: torch.Tensor,
        kv: LayerKv,
        indexes: PagedIndexes,
        window: int,
    ) -> None:
        attend_chunks[len(indexes.chunks), self._shape.kv_heads](
            output,
            queries,
            kv.keys,
            kv.values,
            indexes.chunks,
            indexes.tables,
            indexes.tables.stride(0),
            queries.stride(0),
            queries.stride(1),
            self._shape.scale,
            **self._constants(window),
            QUERY_ROWS=self._tiles.chunk_rows,
            **OPTIONS,
        )

    def _attend_decodes(
        self,
        output: torch.Tensor,
        queries: torch.Tensor,
        kv: LayerKv,
        indexes: PagedIndexes,
        window: int,
    ) -> None:
        shape, items = self._shape, indexes.decodes
        seen = indexes.longest_decode
        if seen is None:
            seen = indexes.tables.shape[1] * shape.block_size
        splits = self._splits.of(min(seen, window) if window else seen)
        room = (len(items), shape.heads, splits)
        parts = sums = output  # neither is touched where nothing is split
        if splits > 1:
            parts = _exact(queries.device, *room, shape.head_dim)
            sums = _exact(queries.device, *room, 2)
        cut = {"SPLITS_MAX": self._splits.most, "SPLIT_KEYS": self._splits.keys}
        attend_decodes[len(items), shape.kv_heads, splits](
            parts,
            sums,
            output,
            queries,
            kv.keys,
            kv.values,
            items,
            indexes.tables,
            indexes.tables.stride(0),
            queries.stride(0),
            queries.stride(1),
            splits,
            shape.scale,
            **self._constants(window),
            **cut,
            QUERY_ROWS=self._tiles.decode_rows,
            IS_SPLIT=splits > 1,
            **OPTIONS,
        )
        if splits > 1:
            merge_splits[len(items), shape.heads](
                output,
                parts,
                sums,
                items,
                splits,
                HEADS=shape.heads,
                HEAD_DIM=shape.head_dim,
                PADDED_DIM=padded(shape.head_dim),
                WINDOW=window,
                **cut,
                SPLIT_ROWS=SPLIT_ROWS,
                **OPTIONS,
            )

    def _constants(self, window: int) -> dict[str, int]:
        shape = self._shape
        return {
            "GROUP": shape.group,
            "KV_HEADS": shape.kv_heads,
            "HEAD_DIM": shape.head_dim,
            "PADDED_DIM": padded(shape.head_dim),
            "BLOCK_SIZE": shape.block_size,
            "KEY_ROWS": self._tiles.keys,
            "WINDOW": window,
        }


def _exact(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)
