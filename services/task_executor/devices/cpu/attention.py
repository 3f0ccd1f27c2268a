"""Paged attention on the CPU: a kernel of our own for decodes, torch's SDPA for chunks.

Where the kernel is not there, entries with one token (decodes) run in groups of like length: their
blocks are gathered, and one padded SDPA a group attends to them. Padding reads the trash block,
which nobody writes, so a row's result depends on its own context only.

An entry with several tokens (a prefill chunk) runs alone: over the keys at hand where it is its
whole context, else over its gathered blocks, under a mask. A window leaves out the blocks that no
token of the entry sees; what layers of one window share is made once a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from services.task_executor.devices.base import AttentionInputs, AttentionStep, LayerKv
from services.task_executor.devices.cpu.native.decode_attention import (
    DecodeAttention,
    DecodeRows,
)

# A group's longest context has at most this many times the blocks of its shortest one.
GROUP_SPREAD_MAX = 2


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    tokens: torch.Tensor  # int64 [n]: which tokens of the step
    blocks: torch.Tensor  # int64 [n * group_blocks], padded with the trash block
    mask: torch.Tensor  # bool [n, 1, 1, keys]: does the token see the key?


@dataclass(frozen=True, slots=True)
class _Context:
    """What a chunk sees in the cache, its own tokens included."""

    blocks: torch.Tensor  # int64 [chunk_blocks]
    mask: torch.Tensor  # bool [tokens, keys]: causal, keys in front of the chunk included


@dataclass(frozen=True, slots=True)
class _Chunk:
    first: int  # its tokens are first .. last - 1 of the step
    last: int
    context: _Context | None  # None: nothing but the chunk itself


class _Work:
    """What all layers of one window share; of the decodes, whichever form is asked for."""

    def __init__(self, inputs: AttentionInputs, window: int | None) -> None:
        self._inputs = inputs
        # How many keys the last token of each entry sees.
        self._seen = [min(it, window or it) for it in inputs.lengths]
        self._decodes: list[tuple[int, int]] = []  # (entry, its token)
        self.chunks: list[_Chunk] = []
        token = 0
        for entry, count in enumerate(inputs.counts):
            if count == 1:
                self._decodes.append((entry, token))
            else:
                self.chunks.append(_make_chunk(inputs, entry, token, window))
            token += count

    @property
    def has_decodes(self) -> bool:
        return bool(self._decodes)

    @cached_property
    def rows(self) -> DecodeRows:
        entries = [entry for entry, _ in self._decodes]
        lengths = [self._inputs.lengths[entry] for entry in entries]
        return DecodeRows(
            self._inputs.block_tables[entries],
            tokens=[token for _, token in self._decodes],
            starts=[self._inputs.lengths[entry] - self._seen[entry] for entry in entries],
            lengths=lengths,
        )

    @cached_property
    def groups(self) -> list[_DecodeGroup]:
        decodes = sorted(self._decodes, key=lambda decode: self._seen[decode[0]])
        cut = _by_width(decodes, self._seen)
        return [_make_group(self._inputs, members, self._seen) for members in cut]


class CpuAttentionStep(AttentionStep):
    def __init__(self, inputs: AttentionInputs, kernel: DecodeAttention | None = None) -> None:
        slots, size = inputs.slots, inputs.block_size
        self._slots = slots
        self._fresh_blocks = slots[slots % size == 0] // size
        self.inputs = inputs
        self._kernel = kernel
        self._work: dict[int | None, _Work] = {}

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kv: LayerKv,
        window: int | None,
    ) -> torch.Tensor:
        if window not in self._work:
            self._work[window] = _Work(self.inputs, window)
        work = self._work[window]
        self._write(kv.keys, keys)
        self._write(kv.values, values)
        output = torch.empty(queries.shape, dtype=queries.dtype)
        if work.has_decodes:
            self._decode(work, queries, kv, output)
        for chunk in work.chunks:
            own = slice(chunk.first, chunk.last)
            if chunk.context is None:
                output[own] = _attend_itself(queries[own], keys[own], values[own])
            else:
                output[own] = _attend_chunk(chunk.context, queries[own], kv)
        return output

    def _decode(
        self, work: _Work, queries: torch.Tensor, kv: LayerKv, output: torch.Tensor
    ) -> None:
        if self._kernel is not None and self._kernel.fits(queries, kv):
            self._kernel.attend(work.rows, queries, kv, output)
            return
        for group in work.groups:
            output[group.tokens] = _attend_group(group, queries[group.tokens], kv)

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


def _attend_itself(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] of one sequence, from its first token on."""
    query, key, value = (it.transpose(0, 1).unsqueeze(0) for it in (queries, keys, values))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return output[0].transpose(0, 1)


def _attend_chunk(context: _Context, queries: torch.Tensor, kv: LayerKv) -> torch.Tensor:
    """queries: [tokens, heads, head_dim] of one sequence."""
    keys = context.mask.shape[1]
    output = F.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        _gather(kv.keys, context.blocks, 1)[:, :, :keys],
        _gather(kv.values, context.blocks, 1)[:, :, :keys],
        attn_mask=context.mask,
        enable_gqa=True,
    )
    return output[0].transpose(0, 1)


def _gather(cache: torch.Tensor, blocks: torch.Tensor, count: int) -> torch.Tensor:
    """[blocks, block_size, kv_heads, head_dim] -> [count, kv_heads, keys, head_dim]."""
    picked = cache.index_select(0, blocks)
    return picked.view(count, -1, *cache.shape[2:]).transpose(1, 2)


def _by_width(decodes: list[tuple[int, int]], seen: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Cut the sorted decodes where padding to the widest would cost too much."""
    groups: list[list[tuple[int, int]]] = []
    narrowest = 0
    for decode in decodes:
        width = seen[decode[0]]
        if not groups or width > GROUP_SPREAD_MAX * narrowest:
            groups.append([])
            narrowest = width
        groups[-1].append(decode)
    return groups


def _make_group(
    inputs: AttentionInputs, members: list[tuple[int, int]], seen: Sequence[int]
) -> _DecodeGroup:
    size = inputs.block_size
    entries = [entry for entry, _ in members]
    tables = inputs.block_tables[entries]
    ends = torch.tensor([inputs.lengths[entry] for entry in entries])[:, None]
    starts = torch.tensor([inputs.lengths[entry] - seen[entry] for entry in entries])[:, None]
    is_cut = bool(starts.any())
    if is_cut:  # count blocks and keys from the first block that is seen
        skipped = starts // size
        tables = _shifted(tables, skipped)
        starts, ends = starts - skipped * size, ends - skipped * size
    width = -(-int(ends.max()) // size)
    # Blocks that are held but not yet written are padding too.
    is_used = torch.arange(width) * size < ends
    keys = torch.arange(width * size)
    mask = keys < ends
    if is_cut:
        mask &= starts <= keys
    return _DecodeGroup(
        tokens=torch.tensor([token for _, token in members]),
        blocks=(tables[:, :width].long() * is_used).flatten(),  # 0 is the trash block
        mask=mask[:, None, None, :],
    )


def _shifted(tables: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
    """Each row without its first blocks; what follows its last one is of no meaning."""
    last = tables.shape[1] - 1
    return tables.gather(1, (skipped + torch.arange(last + 1)).clamp(max=last))


def _make_chunk(inputs: AttentionInputs, entry: int, first: int, window: int | None) -> _Chunk:
    count, length, size = inputs.counts[entry], inputs.lengths[entry], inputs.block_size
    if count == length and (window is None or window >= length):
        return _Chunk(first, first + count, None)
    first_seen = 0 if window is None else max(0, length - count + 1 - window)
    first_block = first_seen // size
    positions = torch.arange(length - count, length)[:, None]
    keys = torch.arange(first_block * size, length)
    mask = keys <= positions
    if window is not None:
        mask &= keys > positions - window
    blocks = inputs.block_tables[entry, first_block : -(-length // size)].long()
    return _Chunk(first, first + count, _Context(blocks, mask))
