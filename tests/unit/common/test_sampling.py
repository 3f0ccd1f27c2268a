from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.sampling import uniform

seeds = st.integers(0, 2**64 - 1)
small = st.integers(0, 2**20)


@given(seeds, small, small)
def test_a_draw_is_a_pure_function_in_the_unit_interval(
    seed: int, choice: int, position: int
) -> None:
    draw = uniform(seed, choice, position)
    assert 0.0 <= draw < 1.0
    assert draw == uniform(seed, choice, position)


@given(seeds)
def test_choices_and_positions_draw_apart(seed: int) -> None:
    draws = {uniform(seed, choice, position) for choice in range(8) for position in range(64)}
    assert len(draws) == 8 * 64


def test_draws_are_spread_evenly() -> None:
    draws = sorted(uniform(7, 0, position) for position in range(10_000))
    worst = max(abs(draw - i / 10_000) for i, draw in enumerate(draws))
    assert worst < 0.02  # Kolmogorov-Smirnov: 0.0163 at one in a hundred


def test_known_values_never_change() -> None:
    """A continuation on another version must draw the same numbers."""
    assert uniform(1, 0, 0) == 0.9140224628703029
    assert uniform(1, 0, 1) == 0.30072604640094347
    assert uniform(1, 1, 0) == 0.24542305336940873
