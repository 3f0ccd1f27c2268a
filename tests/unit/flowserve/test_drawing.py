"""Limits held against transformers' warpers; the head held against the whole order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from services.task_executor.flowserve.sampling.drawing import Drawing, Limits, draw, draw_whole
from tests.unit.flowserve.sampling_rows import random_logits

VOCAB = 200


def draw_all(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    limits: Limits,
    draws: torch.Tensor,
    head: int,
) -> torch.Tensor:
    """From the head, and as a whole where that is not sure."""
    drawing = Drawing(None, temperatures, limits, draws)
    token_ids, is_sure = draw(logits, drawing, head)
    rest = (~is_sure).nonzero().flatten()
    if len(rest):
        token_ids[rest] = draw_whole(logits, drawing, rest)
    return token_ids


def limits_of(rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Limits:
    return Limits(
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.full((rows,), min_p, dtype=torch.float64),
    )


def warped(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities that transformers would draw from."""
    ids = torch.zeros((1, 1), dtype=torch.int64)
    if top_k:
        logits = TopKLogitsWarper(top_k)(ids, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(ids, logits)
    if min_p:
        logits = MinPLogitsWarper(min_p)(ids, logits)  # type: ignore[arg-type]
    return logits.double().softmax(-1)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (7, 1.0, 0.0),
        (1, 1.0, 0.0),
        (5000, 1.0, 0.0),
        (0, 0.8, 0.0),
        (0, 1.0, 0.05),
        (20, 0.7, 0.0),
        (20, 0.9, 0.02),
        (0, 0.95, 0.1),
    ],
)
@pytest.mark.parametrize("head", [16, 1000])
def test_the_distribution_is_that_of_the_warpers(
    top_k: int, top_p: float, min_p: float, head: int
) -> None:
    """Draws on a fine grid give every token as often as its probability says."""
    points = 4000
    logits = random_logits(1, VOCAB, top_k + int(100 * top_p))
    draws = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    drawn = draw_all(
        logits.expand(points, VOCAB),
        torch.full((points,), 0.8, dtype=torch.float64),
        limits_of(points, top_k, top_p, min_p),
        draws,
        head,
    )
    shares = drawn.bincount(minlength=VOCAB).double() / points
    expected = warped(logits.double() / 0.8, min(top_k, VOCAB), top_p, min_p)[0]
    assert (shares - expected).abs().max() <= 2 / points
    assert set(drawn.tolist()) <= set(expected.nonzero().flatten().tolist())


@given(
    seed=st.integers(0, 1 << 30),
    vocabulary=st.integers(10, 80),
    head=st.integers(1, 12),
    has_ties=st.booleans(),
    share_allowed=st.sampled_from([1.0, 0.5, 0.05]),
)
@settings(max_examples=150, deadline=None)
def test_the_head_is_enough_or_says_so(
    seed: int, vocabulary: int, head: int, has_ties: bool, share_allowed: float
) -> None:
    rows = 16
    generator = torch.Generator().manual_seed(seed)
    logits = random_logits(rows, vocabulary, seed, has_ties=has_ties)
    is_allowed = torch.rand(rows, vocabulary, generator=generator) < share_allowed
    is_allowed[:, seed % vocabulary] = True
    logits = logits.masked_fill(~is_allowed, -torch.inf)

    def sometimes(usual: float) -> torch.Tensor:
        values = torch.rand(rows, generator=generator, dtype=torch.float64)
        return torch.where(torch.rand(rows, generator=generator) < 0.5, values, usual)

    limits = Limits(
        torch.randint(0, vocabulary + 3, (rows,), generator=generator)
        * torch.randint(0, 2, (rows,), generator=generator),
        sometimes(1.0).clamp(min=0.01),
        sometimes(0.0),
    )
    temperatures = torch.rand(rows, generator=generator, dtype=torch.float64) * 3 + 0.05
    draws = torch.rand(rows, generator=generator, dtype=torch.float64)
    draws[0], draws[1] = 0.0, 1 - 2**-53
    from_head = draw_all(logits, temperatures, limits, draws, head)
    from_all = draw_all(logits, temperatures, limits, draws, vocabulary)
    assert torch.equal(from_head, from_all)
    assert is_allowed.gather(-1, from_all[:, None]).all()


def test_a_flat_row_is_drawn_whole() -> None:
    """No head holds its draw; every token comes up in the order of ids."""
    draws = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    ones = torch.ones(300, dtype=torch.float64)
    drawn = draw_all(torch.zeros(300, 300), ones, limits_of(300), draws, head=8)
    assert drawn.tolist() == list(range(300))


def test_a_row_that_is_masked_to_one_token_draws_it_whatever_the_limits() -> None:
    logits = torch.full((3, VOCAB), -torch.inf)
    logits[:, 150] = -50.0
    ones = torch.ones(3, dtype=torch.float64)
    draws = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for limits in (limits_of(3), limits_of(3, top_k=40), limits_of(3, top_p=0.1, min_p=0.5)):
        assert draw_all(logits, ones, limits, draws, head=16).tolist() == [150] * 3
