"""Draws one token per row. A row's token is a function of its own logits, parameters and draw.

In this order: log probabilities are taken from the raw logits; then bias, forbidden tokens, masks
and penalties change the logits; greedy rows take the largest; the others divide by temperature,
keep the candidates that top-k, top-p and min-p leave, and draw. Rows only share kernels.

What depends on parameters is decided on the host, what depends on logits on the device, so that
nobody waits: `sample` says which rows it is not sure of, and `settle` draws those from all
candidates once the host knows.
"""

from dataclasses import dataclass, field, replace

import torch

from services.task_executor.flowserve.sampling.adjustments import Adjustments, TokenMasks, adjust
from services.task_executor.flowserve.sampling.drawing import Drawing, draw, draw_whole
from services.task_executor.flowserve.sampling.ranking import (
    Alternatives,
    Asked,
    log_normaliser,
    rank,
)
from services.task_executor.flowserve.sampling.waiting import is_free_to_ask


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    drawing: Drawing | None = None  # None: every row is greedy
    adjustments: Adjustments = field(default_factory=Adjustments)
    asked: Asked | None = None  # None: nobody wants alternatives


@dataclass(frozen=True, slots=True)
class Sampled:
    token_ids: torch.Tensor  # int64 [rows]; 0 where the row failed
    logprobs: torch.Tensor  # fp32 [rows], of the chosen token under the raw logits
    is_valid: torch.Tensor  # bool [rows]: the raw logits were finite and a token was allowed
    is_sure: torch.Tensor  # bool [rows]; the others are drawn by `settle`
    alternatives: Alternatives | None
    source: "Source"


@dataclass(frozen=True, slots=True)
class Source:
    """What the tokens were drawn from."""

    logits: torch.Tensor  # raw
    normaliser: torch.Tensor
    adjusted: torch.Tensor
    drawing: Drawing | None


def sample(
    logits: torch.Tensor, columns: SamplingColumns, masks: TokenMasks | None = None
) -> Sampled:
    """logits: fp32 [rows, vocab]. `masks` are what grammars allow."""
    # The extremes of a row show every NaN and infinity in it, at a tenth of looking at each.
    is_valid = logits.amax(dim=-1).isfinite() & logits.amin(dim=-1).isfinite()
    logits = _without_bad_rows(logits, is_valid)
    adjusted = adjust(logits, columns.adjustments, masks)
    best, token_ids = adjusted.max(dim=-1)
    is_valid &= best.isfinite()
    is_sure = torch.ones_like(is_valid)
    if columns.drawing is not None:
        _draw_into(token_ids, is_sure, adjusted, columns.drawing)
    token_ids = token_ids * is_valid
    normaliser = log_normaliser(logits)
    alternatives = None
    if columns.asked is not None:
        alternatives = rank(logits, normaliser, columns.asked)
    return Sampled(
        token_ids,
        _logprobs(logits, normaliser, token_ids),
        is_valid,
        is_sure | ~is_valid,
        alternatives,
        Source(logits, normaliser, adjusted, columns.drawing),
    )


def settle(sampled: Sampled, rows: torch.Tensor) -> Sampled:
    """Draw those rows from all candidates; int64 [n]. The result is sure of every row."""
    source = sampled.source
    assert source.drawing is not None, "greedy rows are always sure"
    token_ids, logprobs = sampled.token_ids.clone(), sampled.logprobs.clone()
    drawn = draw_whole(source.adjusted, source.drawing, rows)
    token_ids[rows] = drawn
    logprobs[rows] = _logprobs(source.logits[rows], source.normaliser[rows], drawn)
    is_sure = torch.ones_like(sampled.is_sure)
    return replace(sampled, token_ids=token_ids, logprobs=logprobs, is_sure=is_sure)


def _without_bad_rows(logits: torch.Tensor, is_valid: torch.Tensor) -> torch.Tensor:
    if is_free_to_ask(is_valid) and is_valid.all():
        return logits
    return logits.masked_fill(~is_valid[:, None], 0.0)


def _logprobs(
    logits: torch.Tensor, normaliser: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    return logits.gather(-1, token_ids[:, None]).squeeze(-1) - normaliser


def _draw_into(
    token_ids: torch.Tensor, is_sure: torch.Tensor, logits: torch.Tensor, drawing: Drawing
) -> None:
    """A row that has failed draws something, too: nobody on the host knows yet."""
    rows = drawing.rows
    if rows is None:
        drawn, is_known = draw(logits, drawing)
        token_ids.copy_(drawn)
        is_sure.copy_(is_known)
        return
    token_ids[rows], is_sure[rows] = draw(logits[rows], drawing.of(rows))
