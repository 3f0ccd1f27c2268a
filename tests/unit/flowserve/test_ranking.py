import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.task_executor.flowserve.sampling.ranking import (
    Asked,
    log_normaliser,
    rank,
    ranks,
    top,
)
from tests.unit.flowserve.sampling_rows import random_logits


@given(seed=st.integers(0, 1 << 30), vocabulary=st.integers(1, 60), count=st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_alternatives_are_the_likeliest_and_ties_keep_the_order_of_ids(
    seed: int, vocabulary: int, count: int
) -> None:
    logits = random_logits(4, vocabulary, seed, has_ties=True)
    token_ids, logprobs = top(logits, log_normaliser(logits), count)
    order = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(token_ids, order)
    expected = logits.double().log_softmax(-1).gather(-1, order)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_row_gets_the_same_as_alone_however_many_its_neighbours_want() -> None:
    logits = torch.zeros(4, 300)
    logits[:, 250] = 1.0
    normaliser = log_normaliser(logits)
    together = rank(logits, normaliser, Asked(torch.tensor([0, 2]), 20))
    assert together.token_ids.tolist() == [[250, *range(19)]] * 2
    alone = rank(logits[:1], normaliser[:1], Asked(torch.tensor([0]), 3))
    assert torch.equal(alone.token_ids, together.token_ids[:1, :3])
    assert torch.equal(alone.logprobs, together.logprobs[:1, :3])


@pytest.mark.parametrize("rows", [1, 3])
def test_ranks_count_from_the_likeliest(rows: int) -> None:
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.0]]).expand(rows, 4)
    for token, expected in enumerate([3, 1, 4, 2]):
        assert ranks(logits, torch.full((rows,), token)).tolist() == [expected] * rows
