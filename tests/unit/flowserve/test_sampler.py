import numpy as np
import torch

from deepflow.core.sampling import uniform
from services.task_executor.flowserve.sampling.sampler import Sampled, SamplingColumns, sample

VOCAB = 50


def make_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draw(
    logits: torch.Tensor, temperatures: list[float], top_ps: list[float], draws: list[float]
) -> Sampled:
    columns = [torch.tensor(c, dtype=torch.float64) for c in (temperatures, top_ps, draws)]
    return sample(logits, SamplingColumns(*columns))


def test_greedy_takes_the_first_of_the_largest_and_ignores_the_draw() -> None:
    logits = make_logits(4)
    logits[2, 7] = logits[2, 9] = 100.0
    drawn = draw(logits, [0.0] * 4, [0.1, 1.0, 1.0, 1.0], [0.0, 0.5, 0.9, 0.99])
    assert drawn.token_ids.tolist() == logits.argmax(-1).tolist()
    assert drawn.token_ids[2] == 7


def test_logprob_is_that_of_the_raw_logits() -> None:
    logits = make_logits(3)
    drawn = draw(logits, [0.0, 2.0, 0.3], [1.0, 0.5, 1.0], [0.3, 0.6, 0.9])
    expected = logits.log_softmax(-1).gather(-1, drawn.token_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(drawn.logprobs, expected)


def test_a_row_never_depends_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    logits = make_logits(16, seed=3)
    temperatures = [0.0 if i % 4 == 0 else float(rng.uniform(0.2, 2)) for i in range(16)]
    top_ps = rng.uniform(0.1, 1, 16).tolist()
    draws = rng.uniform(0, 1, 16).tolist()
    together = draw(logits, temperatures, top_ps, draws)
    for row in range(16):
        cut = slice(row, row + 1)
        alone = draw(logits[cut], temperatures[cut], top_ps[cut], draws[cut])
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.logprobs[0] == together.logprobs[row]


def test_draws_follow_the_distribution() -> None:
    rows = 4000
    logits = make_logits(1, seed=5).expand(rows, VOCAB)
    draws = [uniform(7, 0, position) for position in range(rows)]
    drawn = draw(logits, [1.5] * rows, [1.0] * rows, draws)
    frequencies = drawn.token_ids.bincount(minlength=VOCAB) / rows
    expected = (logits[0] / 1.5).softmax(-1)
    assert (frequencies - expected).abs().max() < 0.02


def test_top_p_keeps_the_fewest_likely_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.49, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        draws = [i / 200 for i in range(200)] + [1 - 2**-53]
        drawn = draw(logits.repeat(201, 1), [1.0] * 201, [top_p] * 201, draws)
        assert set(drawn.token_ids.tolist()) == kept, top_p


def test_a_tiny_top_p_and_a_tiny_temperature_are_greedy() -> None:
    logits = make_logits(2)
    drawn = draw(logits, [1.0, 1e-30], [1e-9, 1.0], [0.999, 0.999])
    assert drawn.token_ids.tolist() == logits.argmax(-1).tolist()


def test_ties_keep_the_order_of_token_ids() -> None:
    drawn = draw(torch.zeros(4, 4), [1.0] * 4, [1.0] * 4, [0.0, 0.3, 0.6, 0.9])
    assert drawn.token_ids.tolist() == [0, 1, 2, 3]


def test_rows_that_are_not_finite_fail_alone() -> None:
    logits = make_logits(4)
    clean = draw(logits, [1.0] * 4, [0.9] * 4, [0.5] * 4)
    spoiled = logits.clone()
    spoiled[1, 3] = float("nan")
    spoiled[2, 0] = float("inf")
    drawn = draw(spoiled, [1.0] * 4, [0.9] * 4, [0.5] * 4)
    assert drawn.is_valid.tolist() == [True, False, False, True]
    for row in (0, 3):
        assert drawn.token_ids[row] == clean.token_ids[row]
        assert drawn.logprobs[row] == clean.logprobs[row]
