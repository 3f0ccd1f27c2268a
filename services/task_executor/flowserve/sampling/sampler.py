"""Draws one token per row: greedy, or temperature and top-p by inverse CDF.

A row's token is a function of its own logits, parameters and draw; rows only share kernels.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """One entry a row; a temperature of 0 means greedy and makes the other two irrelevant."""

    temperatures: torch.Tensor  # float64 [rows]
    top_ps: torch.Tensor  # float64 [rows]
    draws: torch.Tensor  # float64 [rows], uniform in [0, 1)


@dataclass(frozen=True, slots=True)
class Sampled:
    token_ids: torch.Tensor  # int64 [rows]; 0 where the row failed
    logprobs: torch.Tensor  # fp32 [rows], of the chosen token under the raw logits
    is_valid: torch.Tensor  # bool [rows]: all logits of the row were finite


def sample(logits: torch.Tensor, columns: SamplingColumns) -> Sampled:
    """logits: fp32 [rows, vocab]."""
    is_valid = logits.isfinite().all(dim=-1)
    if not is_valid.all():
        logits = logits.masked_fill(~is_valid[:, None], 0.0)
    token_ids = logits.argmax(dim=-1)
    drawn = columns.temperatures.nonzero().flatten()
    if len(drawn):
        token_ids[drawn] = _draw(
            logits[drawn],
            columns.temperatures[drawn],
            columns.top_ps[drawn],
            columns.draws[drawn],
        )
    chosen = logits.gather(-1, token_ids[:, None]).squeeze(-1)
    return Sampled(token_ids, chosen - logits.logsumexp(dim=-1), is_valid)


def _draw(
    logits: torch.Tensor, temperatures: torch.Tensor, top_ps: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Inverse CDF over the tokens from likely to unlikely, so that rounding moves few draws.

    In fp64 from the maximum down: tiny temperatures do not overflow, long vocabularies still sum
    to one, and ties keep the order of token ids.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    scaled = (ordered - ordered[:, :1]).double() / temperatures[:, None]
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    # The nucleus: the fewest likely tokens that reach top_p together, at least one.
    reached = torch.searchsorted(cumulative, top_ps[:, None])
    last = reached.clamp(max=logits.shape[-1] - 1)
    mass = cumulative.gather(-1, last)
    picked = torch.searchsorted(cumulative, draws[:, None] * mass, right=True)
    return order.gather(-1, picked.minimum(last)).squeeze(-1)
