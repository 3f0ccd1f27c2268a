"""Paged attention on the CPU: gather the blocks of each context, then torch's SDPA with a mask.

Entries with one token (decodes) run in groups of like length, one padded SDPA a group; an entry
with several tokens (a prefill chunk) runs alone. Padding reads the trash block, which nobody
writes, so a row's result depends on its own context only.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from services.task_executor.devices.base import AttentionInputs, AttentionStep, LayerKv

# A group's longest context has at most this many times the blocks of its shortest one.
GROUP_SPREAD_MAX = 2


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    tokens: torch.Tensor  # int64 [n]: which tokens of the step
    blocks: torch.Tensor  # int64 [n * group_blocks], padded with the trash block
    mask: torch.Tensor  # bool [n, 1, 1, keys]: is the key part of the context?


@dataclass(frozen=True, slots=True)
class _Chunk:
    first: int  # its tokens are first .. last - 1 of the step
    last: int
    blocks: torch.Tensor  # int64 [chunk_blocks]
    mask: torch.Tensor  # bool [tokens, keys]: causal, keys in front of the chunk included


class CpuAttentionStep(AttentionStep):
    def __init__(self, inputs: AttentionInputs) -> None:
        slots, size = inputs.slots, inputs.block_size
        self._slots = slots
        self._fresh_blocks = slots[slots % size == 0] // size
        self._decodes, self._chunks = _split(inputs)

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kv: LayerKv
    ) -> torch.Tensor:
        self._write(kv.keys, keys)
        self._write(kv.values, values)
        output = torch.empty_like(queries)
        for group in self._decodes:
            output[group.tokens] = _attend_group(group, queries[group.tokens], kv)
        for chunk in self._chunks:
            output[chunk.first : chunk.last] = _attend_chunk(
                chunk, queries[chunk.first : chunk.last], kv
            )
        return output

    def _write(self, cache: torch.Tensor, new: torch.Tensor) -> None:
        if len(self._fresh_blocks):
            cache.index_fill_(0, self._fresh_blocks, 0)
        cache.view(-1, *cache.shape[2:]).index_copy_(0, self._slots, new)


def _attend_group(group: _DecodeGroup, queries: torch.Tensor, kv: LayerKv) -> torch.Tensor:
    """queries: [n, heads, head_dim], one token a sequence."""
    count, heads, head_dim = queries.shape
    kv_heads = kv.keys.shape[2]
    # The heads that share a KV head become the query positions of that head: same mask for all.
    grouped = queries.reshape(count, kv_heads, heads // kv_heads, head_dim)
    output = F.scaled_dot_product_attention(
        grouped,
        _gather(kv.keys, group.blocks, count),
        _gather(kv.values, group.blocks, count),
        attn_mask=group.mask,
    )
    return output.reshape(count, heads, head_dim)


def _attend_chunk(chunk: _Chunk, queries: torch.Tensor, kv: LayerKv) -> torch.Tensor:
    """queries: [tokens, heads, head_dim] of one sequence."""
    keys = chunk.mask.shape[1]
    output = F.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        _gather(kv.keys, chunk.blocks, 1)[:, :, :keys],
        _gather(kv.values, chunk.blocks, 1)[:, :, :keys],
        attn_mask=chunk.mask,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1)


def _gather(cache: torch.Tensor, blocks: torch.Tensor, count: int) -> torch.Tensor:
    """[blocks, block_size, kv_heads, head_dim] -> [count, kv_heads, keys, head_dim]."""
    picked = cache.index_select(0, blocks)
    return picked.view(count, -1, *cache.shape[2:]).transpose(1, 2)


def _split(inputs: AttentionInputs) -> tuple[list[_DecodeGroup], list[_Chunk]]:
    decodes: list[tuple[int, int]] = []  # (entry, its token)
    chunks: list[_Chunk] = []
    token = 0
    for entry, count in enumerate(inputs.counts):
        if count == 1:
            decodes.append((entry, token))
        else:
            chunks.append(_make_chunk(inputs, entry, token))
        token += count
    decodes.sort(key=lambda decode: inputs.lengths[decode[0]])
    groups = [_make_group(inputs, members) for members in _by_length(inputs, decodes)]
    return groups, chunks


def _by_length(
    inputs: AttentionInputs, decodes: list[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """Cut the sorted decodes where padding to the longest would cost too much."""
    groups: list[list[tuple[int, int]]] = []
    shortest = 0
    for decode in decodes:
        length = inputs.lengths[decode[0]]
        if not groups or length > GROUP_SPREAD_MAX * shortest:
            groups.append([])
            shortest = length
        groups[-1].append(decode)
    return groups


def _make_group(inputs: AttentionInputs, members: list[tuple[int, int]]) -> _DecodeGroup:
    block_size = inputs.block_size
    lengths = torch.tensor([inputs.lengths[entry] for entry, _ in members])
    width = -(-int(lengths.max()) // block_size)
    tables = inputs.block_tables[[entry for entry, _ in members], :width].long()
    # Blocks that are held but not yet written are padding too.
    is_used = torch.arange(width) * block_size < lengths[:, None]
    mask = torch.arange(width * block_size) < lengths[:, None]
    return _DecodeGroup(
        tokens=torch.tensor([token for _, token in members]),
        blocks=(tables * is_used).flatten(),  # 0 is the trash block
        mask=mask[:, None, None, :],
    )


def _make_chunk(inputs: AttentionInputs, entry: int, first: int) -> _Chunk:
    count, length = inputs.counts[entry], inputs.lengths[entry]
    width = -(-length // inputs.block_size)
    positions = torch.arange(length - count, length)
    return _Chunk(
        first=first,
        last=first + count,
        blocks=inputs.block_tables[entry, :width].long(),
        mask=torch.arange(length) <= positions[:, None],
    )
