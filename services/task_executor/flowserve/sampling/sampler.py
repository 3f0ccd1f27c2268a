"""Draws one token per row. A row's token is a function of its own logits, parameters and draw.

In this order: log probabilities are taken from the raw logits; then bias, forbidden tokens, masks
and penalties change the logits; greedy rows take the largest; the others divide by temperature,
keep the candidates that top-k, top-p and min-p leave, and draw. Rows only share kernels.
"""

from dataclasses import dataclass, field

import torch

from services.task_executor.flowserve.sampling.adjustments import Adjustments, TokenMasks, adjust
from services.task_executor.flowserve.sampling.drawing import Limits, draw
from services.task_executor.flowserve.sampling.ranking import Alternatives, log_normaliser, rank


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """One entry a row; a temperature of 0 means greedy and makes limits and draws irrelevant."""

    temperatures: torch.Tensor  # float64 [rows]
    limits: Limits
    draws: torch.Tensor  # float64 [rows], uniform in [0, 1)
    adjustments: Adjustments = field(default_factory=Adjustments)
    alternatives: torch.Tensor | None = None  # int64 [rows]; -1 where none are wanted


@dataclass(frozen=True, slots=True)
class Sampled:
    token_ids: torch.Tensor  # int64 [rows]; 0 where the row failed
    logprobs: torch.Tensor  # fp32 [rows], of the chosen token under the raw logits
    is_valid: torch.Tensor  # bool [rows]: the raw logits were finite and a token was allowed
    alternatives: Alternatives | None = None


def sample(
    logits: torch.Tensor, columns: SamplingColumns, masks: TokenMasks | None = None
) -> Sampled:
    """logits: fp32 [rows, vocab]. `masks` are what grammars allow."""
    # The extremes of a row show every NaN and infinity in it, at a tenth of looking at each.
    is_valid = logits.amax(dim=-1).isfinite() & logits.amin(dim=-1).isfinite()
    if not is_valid.all():
        logits = logits.masked_fill(~is_valid[:, None], 0.0)
    adjusted = adjust(logits, columns.adjustments, masks)
    best, token_ids = adjusted.max(dim=-1)
    is_valid &= best.isfinite()
    _draw_into(token_ids, adjusted, columns, is_valid)
    token_ids = token_ids * is_valid
    normaliser = log_normaliser(logits)
    chosen = logits.gather(-1, token_ids[:, None]).squeeze(-1)
    alternatives = None
    if columns.alternatives is not None:
        alternatives = rank(logits, normaliser, columns.alternatives)
    return Sampled(token_ids, chosen - normaliser, is_valid, alternatives)


def _draw_into(
    token_ids: torch.Tensor,
    logits: torch.Tensor,
    columns: SamplingColumns,
    is_valid: torch.Tensor,
) -> None:
    drawn = ((columns.temperatures > 0) & is_valid).nonzero().flatten()
    if not len(drawn):
        return
    everyone = len(drawn) == len(logits)
    token_ids[drawn] = draw(
        logits if everyone else logits[drawn],
        columns.temperatures[drawn],
        columns.limits.of(drawn),
        columns.draws[drawn],
    )
