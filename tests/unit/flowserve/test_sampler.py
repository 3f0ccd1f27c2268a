import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepflow.core.sampling import uniform
from services.task_executor.flowserve.sampling.adjustments import TokenMasks
from services.task_executor.flowserve.sampling.drawing import Drawing, Limits
from services.task_executor.flowserve.sampling.sampler import Sampled, SamplingColumns, sample
from tests.unit.flowserve.sampling_rows import (
    Row,
    draw_rows,
    pack,
    random_logits,
    random_row,
    sampling,
    settled,
)

VOCAB = 50


def draw(
    logits: torch.Tensor, temperatures: list[float], top_ps: list[float], draws: list[float]
) -> Sampled:
    rows = len(logits)
    temperature, top_p, drawn = (
        torch.tensor(c, dtype=torch.float64) for c in (temperatures, top_ps, draws)
    )
    limits = Limits(torch.zeros(rows, dtype=torch.int64), top_p, torch.zeros_like(top_p))
    drawing = Drawing((temperature > 0).nonzero().flatten(), temperature, limits, drawn)
    return settled(sample(logits, SamplingColumns(drawing)))


def tops_of(drawn: Sampled, batch: list[Row], index: int) -> list[tuple[int, float]]:
    """`batch` are the rows that were drawn, in order."""
    counts = [row.sampling.logprobs or 0 for row in batch]
    if not counts[index]:
        return []
    assert drawn.alternatives is not None
    place = sum(count > 0 for count in counts[:index])
    ids = drawn.alternatives.token_ids[place, : counts[index]]
    logprobs = drawn.alternatives.logprobs[place, : counts[index]]
    return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


def test_greedy_takes_the_first_of_the_largest_and_ignores_the_draw() -> None:
    logits = random_logits(4, VOCAB, 0)
    logits[2, 7] = logits[2, 9] = 100.0
    drawn = draw(logits, [0.0] * 4, [0.1, 1.0, 1.0, 1.0], [0.0, 0.5, 0.9, 0.99])
    assert drawn.token_ids.tolist() == logits.argmax(-1).tolist()
    assert drawn.token_ids[2] == 7


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = random_logits(3, VOCAB, 0)
    changes = {"temperature": 2.0, "top_p": 0.5, "logit_bias": {4: 30.0}, "presence_penalty": 2.0}
    rows = [Row(sampling(seed=i, logprobs=3, **changes), [1], [4, 9]) for i in range(3)]
    drawn = draw_rows(logits, rows)
    raw = logits.log_softmax(-1)
    expected = raw.gather(-1, drawn.token_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(drawn.logprobs, expected)
    for index in range(3):
        best = raw[index].topk(3)
        assert [token for token, _ in tops_of(drawn, rows, index)] == best.indices.tolist()
        logprobs = [logprob for _, logprob in tops_of(drawn, rows, index)]
        assert logprobs == pytest.approx(best.values.tolist(), abs=1e-5)


@given(seed=st.integers(0, 1 << 32), rows=st.integers(2, 8), has_ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_row_never_depends_on_its_neighbours(seed: int, rows: int, has_ties: bool) -> None:
    """Not on their parameters, their number, their order, nor on what is wrong with them."""
    rng = random.Random(seed)
    vocabulary = rng.choice([7, VOCAB, 2000])
    logits = random_logits(rows, vocabulary, seed % 1000, has_ties=has_ties)
    batch = [random_row(rng, vocabulary) for _ in range(rows)]
    spoiled = {index for index in range(rows) if rng.random() < 0.2}
    for index in spoiled:
        logits[index, rng.randrange(vocabulary)] = rng.choice([float("nan"), float("inf")])
    order = rng.sample(range(rows), rows)
    together = draw_rows(logits, batch, only=order)
    for place, index in enumerate(order):
        alone = draw_rows(logits, batch, only=[index])
        assert alone.is_valid[0] == together.is_valid[place] == (index not in spoiled)
        assert alone.token_ids[0] == together.token_ids[place]
        if index not in spoiled:
            assert alone.logprobs[0] == together.logprobs[place]
            shuffled = [batch[it] for it in order]
            assert tops_of(alone, [batch[index]], 0) == tops_of(together, shuffled, place)


def test_a_row_of_a_long_vocabulary_does_not_depend_on_its_neighbours_either() -> None:
    """Here torch shares one row's sum among threads, and heads are not enough for all rows."""
    rng = random.Random(5)
    logits = random_logits(3, 40_009, 5)
    batch = [random_row(rng, 40_009) for _ in range(3)]
    together = draw_rows(logits, batch)
    for index in range(3):
        alone = draw_rows(logits, batch, only=[index])
        assert alone.token_ids[0] == together.token_ids[index]
        assert alone.logprobs[0] == together.logprobs[index]
        assert tops_of(alone, [batch[index]], 0) == tops_of(together, batch, index)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_draws_follow_the_distribution(temperature: float) -> None:
    rows = 8000
    logits = random_logits(1, VOCAB, 5).expand(rows, VOCAB)
    draws = [uniform(7, 0, position) for position in range(rows)]
    drawn = draw(logits, [temperature] * rows, [1.0] * rows, draws)
    observed = drawn.token_ids.bincount(minlength=VOCAB).double()
    expected = (logits[0].double() / temperature).softmax(-1) * rows
    is_common = expected >= 5
    observed = torch.cat([observed[is_common], observed[~is_common].sum()[None]])
    expected = torch.cat([expected[is_common], expected[~is_common].sum()[None]])
    chi_square = float(((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    freedom = len(observed) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_top_p_keeps_the_fewest_likely_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.49, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        draws = [i / 200 for i in range(200)] + [1 - 2**-53]
        drawn = draw(logits.repeat(201, 1), [1.0] * 201, [top_p] * 201, draws)
        assert set(drawn.token_ids.tolist()) == kept, top_p


def test_a_tiny_top_p_and_a_tiny_temperature_are_greedy() -> None:
    logits = random_logits(2, VOCAB, 0)
    drawn = draw(logits, [1.0, 1e-30], [1e-9, 1.0], [0.999, 0.999])
    assert drawn.token_ids.tolist() == logits.argmax(-1).tolist()


def test_ties_keep_the_order_of_token_ids() -> None:
    drawn = draw(torch.zeros(4, 4), [1.0] * 4, [1.0] * 4, [0.0, 0.3, 0.6, 0.9])
    assert drawn.token_ids.tolist() == [0, 1, 2, 3]


def test_rows_that_are_not_finite_fail_alone() -> None:
    logits = random_logits(5, VOCAB, 0)
    clean = draw(logits, [1.0] * 5, [0.9] * 5, [0.5] * 5)
    spoiled = logits.clone()
    spoiled[1, 3] = float("nan")
    spoiled[2, 0] = float("inf")
    spoiled[4, 9] = float("-inf")
    drawn = draw(spoiled, [1.0] * 5, [0.9] * 5, [0.5] * 5)
    assert drawn.is_valid.tolist() == [True, False, False, True, False]
    for row in (0, 3):
        assert drawn.token_ids[row] == clean.token_ids[row]
        assert drawn.logprobs[row] == clean.logprobs[row]


@pytest.mark.parametrize("vocabulary", [32, 50, 65])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_what_the_masks_allow_is_drawn(vocabulary: int, temperature: float) -> None:
    logits = random_logits(6, vocabulary, 1)
    is_allowed = torch.from_numpy(np.random.default_rng(2).random((2, vocabulary)) < 0.3)
    is_allowed[1, :-1] = False
    is_allowed[1, -1] = True
    masks = TokenMasks(torch.tensor([4, 1]), pack(is_allowed))
    rows = [Row(sampling(temperature=temperature, seed=i), [1], []) for i in range(6)]
    drawn, free = draw_rows(logits, rows, masks=masks), draw_rows(logits, rows)
    assert is_allowed[0, drawn.token_ids[4]]
    assert drawn.token_ids[1] == vocabulary - 1
    for row in (0, 2, 3, 5):
        assert drawn.token_ids[row] == free.token_ids[row]
    if not temperature:
        assert drawn.token_ids[4] == logits[4].masked_fill(~is_allowed[0], -torch.inf).argmax()


def test_a_mask_that_allows_nothing_fails_its_row_alone() -> None:
    logits = random_logits(3, VOCAB, 1)
    rows = [Row(sampling(seed=i), [1], []) for i in range(3)]
    masks = TokenMasks(torch.tensor([1]), pack(torch.zeros(1, VOCAB, dtype=torch.bool)))
    drawn = draw_rows(logits, rows, masks=masks)
    assert drawn.is_valid.tolist() == [True, False, True]
    assert drawn.token_ids[[0, 2]].tolist() == draw_rows(logits, rows).token_ids[[0, 2]].tolist()
