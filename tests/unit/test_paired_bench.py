"""Whether two ways differ, and whether a cost model chose the quicker one."""

import random

import pytest

from deepflow.bench.paired import Ratio, rank_of, ratio_of
from deepflow.bench.rtc_cases import Case, case_of, summary


def test_an_interval_needs_enough_rounds() -> None:
    assert [rank_of(count) for count in (1, 5, 6, 8, 9, 15, 21)] == [None, None, 0, 0, 1, 3, 5]


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        # Most rounds are a little noisy, one in ten was held up for long.
        own = [draw.gauss(1.1, 0.05) * draw.choice([1] * 9 + [5]) for _ in range(15)]
        ratio = ratio_of(own, [1.0] * 15)
        assert ratio.low <= ratio.middle <= ratio.high
        hits += ratio.low <= 1.107 <= ratio.high  # of the mixture
    assert hits >= 0.93 * 400


def test_a_ratio_turned_round() -> None:
    assert Ratio(2.0, 1.0, 4.0).inverse == Ratio(0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("fetch_ms", "choice", "verdict"),
    [
        (5.0, "fetch", "right"),
        (5.0, "compute", "wrong"),
        (20.0, "fetch", "wrong"),
        (20.0, "compute", "right"),
        (10.3, "fetch", "right"),  # as good as the other
        (10.3, "compute", "right"),
    ],
)
def test_a_choice_is_judged_by_what_was_measured(
    fetch_ms: float, choice: str, verdict: str
) -> None:
    case = case_of("dram", 64, [fetch_ms / 1e3] * 15, [0.010] * 15, choice)
    assert (case.verdict, case.fetch_ms, case.compute_ms) == (verdict, fetch_ms, 10.0)


def test_a_difference_within_the_noise_is_neither_right_nor_wrong() -> None:
    noisy = [0.005, 0.020] * 8
    for choice in ("fetch", "compute"):
        assert case_of("dram", 64, noisy, [0.010] * 16, choice).verdict == "unclear"


def test_one_held_up_round_in_five_changes_no_verdict() -> None:
    fetched = [0.005, 0.005, 0.005, 0.005, 0.050] * 4
    assert case_of("dram", 64, fetched, [0.010] * 20, "fetch").verdict == "right"


def test_the_summary_counts_what_is_unclear_apart() -> None:
    def case(verdict: str) -> Case:
        times = {"right": 5.0, "wrong": 20.0}
        if verdict == "unclear":
            return case_of("disk", 16, [0.005, 0.020] * 8, [0.010] * 16, "fetch")
        return case_of("disk", 16, [times[verdict] / 1e3] * 16, [0.010] * 16, "fetch")

    shown = summary([case(it) for it in ("right", "right", "right", "wrong", "unclear")])
    assert (shown["right_choices"], shown["wrong"], shown["unclear"]) == (0.75, 1, 1)
    assert shown["reused"] == 5
    assert summary([case("unclear")])["right_choices"] is None
