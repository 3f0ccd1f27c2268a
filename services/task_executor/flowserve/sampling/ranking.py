"""Log probabilities of the raw logits: normalisers, alternatives, and where a token ranks."""

from dataclasses import dataclass

import torch

from services.task_executor.flowserve.sampling.waiting import is_free_to_ask


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows want alternatives."""

    rows: torch.Tensor  # int64 [n], indexes into the batch
    most: int  # that any of them wants


@dataclass(frozen=True, slots=True)
class Alternatives:
    """The likeliest tokens of each row that asked; as many as any of them wants."""

    token_ids: torch.Tensor  # int64 [n, most], likeliest first
    logprobs: torch.Tensor  # fp32, likewise


def log_normaliser(logits: torch.Tensor) -> torch.Tensor:
    """[rows]. A single row is summed as one of several: alone, torch would sum it otherwise."""
    if len(logits) == 1:
        return logits.expand(2, -1).logsumexp(dim=-1)[:1]
    return logits.logsumexp(dim=-1)


def rank(logits: torch.Tensor, normaliser: torch.Tensor, asked: Asked) -> Alternatives:
    return Alternatives(*top(logits[asked.rows], normaliser[asked.rows], asked.most))


def top(
    logits: torch.Tensor, normaliser: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest tokens of every row and their log probabilities, ties by id.

    A vocabulary that holds fewer gives all it has.
    """
    values, token_ids = _likeliest(logits, min(count, logits.shape[-1]))
    by_id = token_ids.argsort(dim=-1)
    order = by_id.gather(-1, values.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True))
    return token_ids.gather(-1, order), values.gather(-1, order) - normaliser[:, None]


def _likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids. Of tokens that tie with the last value, topk takes any; here the first."""
    values, token_ids = logits.topk(min(count + 1, logits.shape[-1]), dim=-1)
    if values.shape[-1] == count:
        return values, token_ids
    is_cut = values[:, count - 1] == values[:, count]
    values, token_ids = values[:, :count], token_ids[:, :count]
    if not is_free_to_ask(logits):
        firsts = _take_first_ties(logits, values, token_ids)
        return values, torch.where(is_cut[:, None], firsts, token_ids)
    rows = is_cut.nonzero().flatten()
    if len(rows):
        token_ids[rows] = _take_first_ties(logits[rows], values[rows], token_ids[rows])
    return values, token_ids


def _take_first_ties(
    logits: torch.Tensor, values: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Token ids, in which those of the last value are the smallest that have it."""
    count, vocabulary = values.shape[-1], logits.shape[-1]
    ids = torch.arange(vocabulary, dtype=torch.int32, device=logits.device)
    is_last = logits == values[:, -1:]
    first = torch.where(is_last, ids, vocabulary).topk(count, dim=-1, largest=False).values
    is_before = values > values[:, -1:]
    places = torch.arange(count, device=logits.device) - is_before.sum(dim=-1, keepdim=True)
    return torch.where(is_before, token_ids, first.gather(-1, places.clamp(min=0)).long())


def ranks(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """1 for the likeliest token of its row; int64 [rows]."""
    return 1 + (logits > logits.gather(-1, token_ids[:, None])).sum(dim=-1)
