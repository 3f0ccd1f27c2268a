"""Inverse CDF over the candidates from likely to unlikely, so that rounding moves few draws.

Every limit keeps a beginning of that order, so a row needs no more of it than the draw reaches.
A head of the order is enough for nearly every row, and says where it is not; those few are then
sorted as a whole. Both ways give the same token: `test_the_head_is_enough_or_says_so` holds them
against each other.
"""

from dataclasses import dataclass

import torch

HEAD = 1024
# Rows sorted as a whole at a time: sorting takes ten times the memory of the logits.
SORTED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Which candidates may be drawn; one entry a row."""

    top_ks: torch.Tensor  # int64; 0 = all
    top_ps: torch.Tensor  # float64 in (0, 1]: the fewest that reach this share of what top-k left
    min_ps: torch.Tensor  # float64 in [0, 1]: at least this share of the likeliest one's

    def of(self, rows: torch.Tensor) -> "Limits":
        return Limits(self.top_ks[rows], self.top_ps[rows], self.min_ps[rows])


@dataclass(frozen=True, slots=True)
class Drawing:
    """Which rows draw, and how; the other columns have an entry for every row of the batch."""

    rows: torch.Tensor | None  # int64 [n], indexes into the batch; None = all of them
    temperatures: torch.Tensor  # float64; above 0 where the row draws
    limits: Limits
    draws: torch.Tensor  # float64, uniform in [0, 1)

    def of(self, rows: torch.Tensor) -> "Drawing":
        return Drawing(None, self.temperatures[rows], self.limits.of(rows), self.draws[rows])


def draw(
    logits: torch.Tensor, drawing: Drawing, head: int = HEAD
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token id for every row, and whether it is sure; the others need `draw_whole`.

    A row without a finite logit gets a token, too, which means nothing.

    In fp64 from the maximum down: tiny temperatures do not overflow, long vocabularies still sum
    to one, and ties keep the order of token ids.
    """
    shares = _shares(logits, drawing.temperatures)
    if logits.shape[-1] <= head:
        token_ids = _draw_sorted(logits, shares, drawing.limits, drawing.draws)
        return token_ids, torch.ones_like(token_ids, dtype=torch.bool)
    return _draw_from_head(logits, shares, drawing.limits, drawing.draws, head)


def draw_whole(logits: torch.Tensor, drawing: Drawing, rows: torch.Tensor) -> torch.Tensor:
    """Token ids of those rows of the batch, from all candidates; few rows at a time."""
    parts = torch.split(rows, SORTED_ROWS)
    return torch.cat([_draw_whole(logits[part], drawing.of(part)) for part in parts])


def _draw_whole(logits: torch.Tensor, drawing: Drawing) -> torch.Tensor:
    shares = _shares(logits, drawing.temperatures)
    return _draw_sorted(logits, shares, drawing.limits, drawing.draws)


def _shares(logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double()
    return scaled.div_(temperatures[:, None]).softmax(dim=-1)


def _draw_sorted(
    logits: torch.Tensor, shares: torch.Tensor, limits: Limits, draws: torch.Tensor
) -> torch.Tensor:
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    picked, _ = _pick(shares.gather(-1, order), limits, draws, logits.shape[-1])
    return order.gather(-1, picked[:, None]).squeeze(-1)


def _draw_from_head(
    logits: torch.Tensor, shares: torch.Tensor, limits: Limits, draws: torch.Tensor, head: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and where they are sure: the draw falls on a token before the head's last value.

    Of tokens that tie with the last value, any may have made it into the head.
    """
    values, order = logits.topk(head, dim=-1)
    order = order.gather(-1, _by_value_then_id(values, order))
    values = logits.gather(-1, order)
    picked, is_sure = _pick(shares.gather(-1, order), limits, draws, logits.shape[-1])
    is_before_ties = values.gather(-1, picked[:, None]).squeeze(-1) > values[:, -1]
    return order.gather(-1, picked[:, None]).squeeze(-1), is_sure & is_before_ties


def _by_value_then_id(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    by_id = ids.argsort(dim=-1)
    by_value = values.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)
    return by_id.gather(-1, by_value)


def _pick(
    shares: torch.Tensor, limits: Limits, draws: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the drawn candidate, and whether `shares` reached far enough to know it.

    `shares` are the likeliest candidates' in order, all of them or a head.
    """
    known = shares.shape[-1]
    is_whole = known == vocabulary
    sums = shares.cumsum(dim=-1)

    def sum_of(counts: torch.Tensor) -> torch.Tensor:
        """What the first `counts` candidates have together; 1 for all of them, by definition."""
        inside = sums.gather(-1, (counts.clamp(1, known) - 1)[:, None]).squeeze(-1)
        return torch.where(counts >= vocabulary, 1.0, inside)

    by_k = torch.where(limits.top_ks > 0, limits.top_ks.clamp(max=vocabulary), vocabulary)
    wanted = limits.top_ps * sum_of(by_k)
    by_p = 1 + torch.searchsorted(sums, wanted[:, None]).squeeze(-1)
    by_p = torch.where(limits.top_ps < 1, by_p, vocabulary)
    by_min = (shares >= limits.min_ps[:, None] * shares[:, :1]).sum(dim=-1)
    by_min = torch.where((limits.min_ps > 0) & ((by_min < known) | is_whole), by_min, vocabulary)
    counts = torch.minimum(torch.minimum(by_k, by_p), by_min).clamp(max=vocabulary)
    targets = (draws * sum_of(counts))[:, None]
    picked = torch.searchsorted(sums, targets, right=True).squeeze(-1)
    # Rounding may leave a sum below its target; a token without any share is never drawn.
    last = torch.minimum(counts, (shares > 0).sum(dim=-1)).clamp(min=1) - 1
    if is_whole:
        return picked.minimum(last), torch.ones_like(picked, dtype=torch.bool)
    # Every limit that counts lies inside the head, and so does the draw.
    is_known = (by_k <= known) | (by_k == vocabulary)
    is_known &= (counts <= known) | (counts == vocabulary)
    is_known &= _is_min_p_known(shares, limits, counts) & (picked < known)
    return picked.clamp(max=known - 1).minimum(last), is_known


def _is_min_p_known(shares: torch.Tensor, limits: Limits, counts: torch.Tensor) -> torch.Tensor:
    """A head whose last candidate still has its share does not show where min-p ends.

    Where another limit ends inside the head, it does not matter.
    """
    is_open = (limits.min_ps > 0) & (shares[:, -1] >= limits.min_ps * shares[:, 0])
    return ~is_open | (counts <= shares.shape[-1])
