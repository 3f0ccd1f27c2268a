"""Texts of different length in one flat batch: attention within each, and nothing padded."""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
import torch.nn.functional as F


class Segments:
    """Segment i owns the next lengths[i] of the flattened tokens, which is at least one.

    Lengths must not fall: segments of one length lie side by side and are attended in one go.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        assert all(one <= next_one for one, next_one in pairwise(lengths))
        self._runs = [(length, len(list(run))) for length, run in groupby(lengths)]
        self._lengths = lengths

    def positions(self) -> torch.Tensor:
        """Of each token within its segment."""
        return torch.cat([torch.arange(length).repeat(count) for length, count in self._runs])

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Every token to all tokens of its segment: [tokens, heads, head_dim], thrice and back."""
        output, parts = torch.empty_like(queries), (queries, keys, values)
        start = 0
        for length, count in self._runs:
            end = start + length * count
            shape = (count, length, *queries.shape[1:])
            q, k, v = (part[start:end].reshape(shape).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v)
            output[start:end] = attended.transpose(1, 2).flatten(0, 1)
            start = end
        return output

    def pool(self, hidden: torch.Tensor, pooling: str) -> torch.Tensor:
        """One vector a segment: the mean or the maximum of its tokens', or its first token's."""
        if pooling == "cls":
            starts = [0, *accumulate(self._lengths)][:-1]
            return hidden[torch.tensor(starts)]
        parts = []
        start = 0
        for length, count in self._runs:
            end = start + length * count
            run = hidden[start:end].view(count, length, -1)
            parts.append(run.mean(dim=1) if pooling == "mean" else run.amax(dim=1))
            start = end
        return torch.cat(parts)
