"""KV in blocks, of which only what a sequence wrote is a number, and attention written plainly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.task_executor.devices.base import AttentionInputs, LayerKv


@dataclass(frozen=True)
class Heads:
    count: int
    kv: int
    dim: int


@dataclass(frozen=True)
class Step:
    """Entry i runs the last counts[i] of its lengths[i] tokens."""

    counts: list[int]
    lengths: list[int]

    def entries(self) -> list[tuple[int, int, int]]:
        return list(zip(range(len(self.counts)), self.counts, self.lengths, strict=True))


class Memory:
    def __init__(
        self,
        step: Step,
        heads: Heads,
        block_size: int,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(tokens: int, count: int) -> torch.Tensor:
            return torch.randn(tokens, count, heads.dim, generator=generator).to(dtype)

        self.step, self.block_size = step, block_size
        # What a table names behind the context belongs to nobody either.
        per_entry = -(-max(step.lengths) // block_size) + 1
        order = torch.randperm(len(step.counts) * per_entry, generator=generator)
        self.tables = (1 + order).view(-1, per_entry).int()
        self.keys = [random(length, heads.kv) for length in step.lengths]
        self.values = [random(length, heads.kv) for length in step.lengths]
        self.queries = random(sum(step.counts), heads.count)
        shape = (1 + self.tables.numel(), block_size, heads.kv, heads.dim)
        self.kv = LayerKv(*(torch.full(shape, torch.nan, dtype=dtype) for _ in "kv"))
        for cache, contents in ((self.kv.keys, self.keys), (self.kv.values, self.values)):
            for entry, count, length in step.entries():
                done = length - count
                cache.flatten(0, 1)[self.slots(entry, 0, done)] = contents[entry][:done]

    def slots(self, entry: int, start: int, end: int) -> torch.Tensor:
        seats = torch.arange(start, end)
        blocks = self.tables[entry].long()[seats // self.block_size]
        return blocks * self.block_size + seats % self.block_size

    def inputs(self, entries: Sequence[int] | None = None) -> AttentionInputs:
        every = self.step.entries()
        chosen = every if entries is None else [every[entry] for entry in entries]
        slots = [self.slots(entry, length - count, length) for entry, count, length in chosen]
        return AttentionInputs(
            self.block_size,
            [count for _, count, _ in chosen],
            [length for _, _, length in chosen],
            self.tables[[entry for entry, _, _ in chosen]],
            torch.cat(slots),
        )

    def new(self, contents: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([contents[entry][-count:] for entry, count, _ in self.step.entries()])

    def holds(self, cache: torch.Tensor, contents: list[torch.Tensor]) -> bool:
        """Every token at its place, and nothing anywhere else."""
        wanted = torch.full_like(cache, torch.nan)
        for entry, _, length in self.step.entries():
            wanted.flatten(0, 1)[self.slots(entry, 0, length)] = contents[entry]
        return torch.equal(cache.nan_to_num(7e3), wanted.nan_to_num(7e3))

    def expected(self, window: int | None) -> torch.Tensor:
        """fp32 [tokens, heads, head_dim]"""
        queries = torch.split(self.queries, self.step.counts)
        return torch.cat(
            [
                _attended(asked, keys, values, window)
                for asked, keys, values in zip(queries, self.keys, self.values, strict=True)
            ]
        )


def _attended(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """The last len(queries) tokens of a context see it up to themselves."""
    shared = queries.shape[1] // keys.shape[1]
    keys, values = (it.double().repeat_interleave(shared, dim=1) for it in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries.double(), keys) * queries.shape[2] ** -0.5
    own = torch.arange(len(keys) - len(queries), len(keys))[:, None]
    seats = torch.arange(len(keys))[None]
    is_seen = (seats <= own) & (seats > own - (window or len(keys)))
    weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).float()
