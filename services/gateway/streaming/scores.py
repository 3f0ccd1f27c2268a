"""Tokens with their log probabilities, read out of the columns that carry them."""

from collections.abc import Sequence
from typing import NamedTuple

from deepflow.v1 import jobs_pb2 as jobs


class Alternative(NamedTuple):
    token_id: int
    token: bytes
    logprob: float


class Score(NamedTuple):
    """One token and what could have stood in its place, likeliest first."""

    token: bytes
    logprob: float
    alternatives: list[Alternative]


def fits(details: jobs.TokenDetails, logprobs: Sequence[float]) -> bool:
    """Whether the columns agree with each other and with the tokens that they are about."""
    return len(details.token_bytes) == len(logprobs) and _columns_fit(details, len(logprobs))


def prompt_fits(prompt: jobs.ChoicePrompt) -> bool:
    tokens, scored = len(prompt.token_ids), len(prompt.logprobs)
    return (
        len(prompt.token_bytes) == tokens > 0
        and scored in (0, tokens - 1)
        and len(prompt.ranks) == scored
        and _columns_fit(prompt, scored)
    )


def scores_of(details: jobs.TokenDetails, logprobs: Sequence[float]) -> list[Score]:
    return list(
        map(Score, details.token_bytes, logprobs, _alternatives(details, details.top_counts))
    )


def prompt_scores(prompt: jobs.ChoicePrompt) -> list[Score]:
    """Of every token but the first, which nothing comes before."""
    tokens = prompt.token_bytes[1:]
    return list(map(Score, tokens, prompt.logprobs, _alternatives(prompt, prompt.top_counts)))


def _columns_fit(columns: jobs.TokenDetails | jobs.ChoicePrompt, tokens: int) -> bool:
    total = sum(columns.top_counts)
    return (
        len(columns.top_counts) == tokens
        and len(columns.top_token_ids) == total
        and len(columns.top_token_bytes) == total
        and len(columns.top_logprobs) == total
    )


def _alternatives(
    columns: jobs.TokenDetails | jobs.ChoicePrompt, counts: Sequence[int]
) -> list[list[Alternative]]:
    everything = list(
        map(Alternative, columns.top_token_ids, columns.top_token_bytes, columns.top_logprobs)
    )
    result, start = [], 0
    for count in counts:
        result.append(everything[start : start + count])
        start += count
    return result
