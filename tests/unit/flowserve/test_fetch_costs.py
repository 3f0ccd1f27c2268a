import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.flowserve.rtc.copies import Tier
from services.task_executor.flowserve.rtc.fetch_costs import (
    CAUTION,
    Computing,
    FetchCosts,
    choose_reuse,
)
from services.task_executor.flowserve.rtc.least_squares import LeastSquares
from services.task_executor.flowserve.tiers import cost_file
from services.task_executor.flowserve.tiers.cost_file import CostFile
from tests.unit.flowserve.harness import make_config

BLOCK, STEP_TOKENS = 16, 512


def pairs_of(start: int, count: int) -> int:
    return count * start + count * (count + 1) // 2


def learn(
    step: float, token: float, pair: float, *, least: float = 0.0, noise: float = 0.0
) -> FetchCosts:
    """From steps of prompts of many lengths that cost exactly, or nearly, so much."""
    costs, draw = FetchCosts(), random.Random(1)
    for turn in range(200):
        start, count = draw.randrange(400), draw.randrange(8, 400) if turn % 4 else 4
        pairs = pairs_of(start, count)
        seconds = max(least, step + token * count + pair * pairs)
        seconds *= draw.uniform(1 - noise, 1 + noise)
        costs.observe_step(count, count, pairs, seconds)
    return costs


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_computing_costs_what_it_was_seen_to_cost(noise: float) -> None:
    costs = learn(2e-3, 1e-4, 1e-7, noise=noise)
    for start, count in ((0, 64), (0, 256), (256, 128)):
        # The step itself is needed for the rest of the prompt anyway.
        wanted = 1e-4 * count + 1e-7 * pairs_of(start, count)
        seconds = costs.compute_seconds(Computing(start, count, 20, STEP_TOKENS))
        assert seconds == pytest.approx(wanted, rel=0.05 + noise)


def test_tokens_cost_nothing_where_a_step_takes_its_least_time_anyway() -> None:
    costs = learn(1e-3, 1e-4, 0.0, least=2e-2)
    assert costs.compute_seconds(Computing(0, 128, 8, STEP_TOKENS)) == pytest.approx(0, abs=1e-3)
    seconds = costs.compute_seconds(Computing(0, 300, 8, STEP_TOKENS))
    assert seconds == pytest.approx(1e-3 + 308e-4 - 2e-2, rel=0.1)


def test_a_long_prefix_takes_more_steps() -> None:
    costs = learn(2e-3, 1e-4, 0.0)
    seconds = costs.compute_seconds(Computing(0, 2 * STEP_TOKENS, 20, STEP_TOKENS))
    assert seconds == pytest.approx(2 * 2e-3 + 1e-4 * 2 * STEP_TOKENS, rel=0.05)


def test_one_step_that_was_held_up_changes_little() -> None:
    costs = learn(2e-3, 1e-4, 0.0)
    before = costs.compute_seconds(Computing(0, 256, 20, STEP_TOKENS))
    costs.observe_step(100, 100, 5050, 60.0)
    after = costs.compute_seconds(Computing(0, 256, 20, STEP_TOKENS))
    assert before is not None and after == pytest.approx(before, rel=0.5)


def test_what_was_kept_is_used_while_nothing_is_known() -> None:
    assert choose_reuse([Tier.DRAM] * 3, FetchCosts(), BLOCK, STEP_TOKENS) == 3


def test_computing_that_was_chosen_too_often_is_found_out() -> None:
    costs = learn(2e-3, 1e-4, 0.0)
    costs.assume_copy(Tier.DRAM, 1.0)
    turns = 0
    while not choose_reuse([Tier.DRAM], costs, BLOCK, STEP_TOKENS):
        costs.relent()
        turns += 1
    assert turns < 1000
    costs.observe_copies(Tier.DRAM, 1, 1e-6)


@given(
    tiers=st.lists(st.sampled_from(list(Tier)), max_size=12),
    dram=st.floats(1e-6, 1e-1),
    disk=st.floats(1e-6, 1e-1),
    wait=st.floats(0, 1e-1),
)
def test_the_choice_is_the_quickest_of_all(
    tiers: list[Tier], dram: float, disk: float, wait: float
) -> None:
    costs = learn(2e-3, 1e-4, 1e-7)
    costs.block_seconds, costs.wait_seconds = {Tier.DRAM: dram, Tier.DISK: disk}, wait

    def seconds(end: int) -> float:
        work = Computing(end * BLOCK, (len(tiers) - end) * BLOCK, 1, STEP_TOKENS)
        rest = costs.compute_seconds(work)
        assert rest is not None
        fetched = {tier: tiers[:end].count(tier) for tier in (Tier.DRAM, Tier.DISK)}
        return rest + CAUTION * costs.fetch_seconds(fetched)

    chosen = choose_reuse(tiers, costs, BLOCK, STEP_TOKENS)
    ends = [0, *(i for i in range(1, len(tiers)) if tiers[i] is not tiers[i - 1]), len(tiers)]
    assert seconds(chosen) == pytest.approx(min(map(seconds, ends)))
    # What lies on the device already costs nothing and is never given up.
    on_device = next((i for i, tier in enumerate(tiers) if tier is not Tier.DEVICE), len(tiers))
    assert chosen >= on_device


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=30))
def test_no_price_is_below_zero(points: list[tuple[float, float]]) -> None:
    fit = LeastSquares(2)
    for x, y in points:
        fit.observe((1.0, x), y)
    assert all(price >= 0 for price in fit.coefficients())


def test_what_was_learnt_is_known_in_the_next_life(tmp_path: Path) -> None:
    costs = learn(2e-3, 1e-4, 1e-7, least=4e-3)
    costs.observe_copies(Tier.DRAM, 1, 1e-4)
    file = CostFile(tmp_path, make_config(), "cpu")
    assert file.read().record() == FetchCosts().record()
    file.write(costs)
    again = file.read()
    assert again.record() == costs.record()
    work = Computing(0, 256, 20, STEP_TOKENS)
    assert again.compute_seconds(work) == pytest.approx(costs.compute_seconds(work))
    other = CostFile(tmp_path, make_config(block_size=8), "cpu")
    assert other.read().record() == FetchCosts().record()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"wait_seconds": -1}', b"\xff" * 100, b"x" * 100_000]
)
def test_a_bad_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    file = CostFile(tmp_path, make_config(), "cpu")
    file.write(learn(2e-3, 1e-4, 1e-7))
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert file.read().record() == FetchCosts().record()


def test_old_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_file, "FILES_MAX", 3)
    for size in range(4, 10):
        CostFile(tmp_path, make_config(block_size=size), "cpu").write(FetchCosts())
    assert len(list(tmp_path.iterdir())) == 3


def test_copies_that_are_held_up_now_and_then_make_fetching_no_bargain() -> None:
    """What is cut off as an outlier, somebody waited for all the same: both prices together are
    right, or a little too high."""
    costs = FetchCosts()
    expected = []
    for number in range(400):
        expected.append(costs.fetch_seconds({Tier.DRAM: 10}))
        seconds = 1.0 if number % 4 == 3 else 0.010
        priced = costs.observe_copies(Tier.DRAM, 10, seconds)
        costs.observe_wait(seconds - priced)
    mean = 0.75 * 0.010 + 0.25 * 1.0
    assert 0.95 * mean < sum(expected[100:]) / 300 < 1.3 * mean


def test_blocks_that_are_copied_in_bursts_cost_their_mean() -> None:
    """One in eight takes all of the time: an emulated link sleeps so, and a busy host is alike."""
    costs = FetchCosts()
    for _ in range(50):
        costs.observe_copies(Tier.DRAM, 16, 14 * 3e-6 + 2 * 320e-6)
    mean = (14 * 3e-6 + 2 * 320e-6) / 16
    assert costs.block_seconds[Tier.DRAM] == pytest.approx(mean)


def test_waiting_never_costs_less_than_nothing() -> None:
    costs = FetchCosts()
    costs.observe_wait(-1.0)
    assert costs.wait_seconds == 0.0


def test_small_steps_that_were_held_up_do_not_make_tokens_cheap() -> None:
    """Seldom ones of a busy host would otherwise look like steps that are long for few tokens."""
    costs = FetchCosts()
    for number in range(200):
        tokens = (16, 64, 128, 400, 800)[number % 5]
        seconds = max(0.003, tokens * 1e-5)
        if number % 7 == 3:
            seconds += 0.006
        costs.observe_step(tokens, tokens, tokens * tokens // 2, seconds)
    cheap, dear = (
        costs.compute_seconds(Computing(0, count, 8, 2048)) or 0.0 for count in (392, 792)
    )
    assert 1.5 * cheap < dear
