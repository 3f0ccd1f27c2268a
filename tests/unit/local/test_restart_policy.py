from hypothesis import given
from hypothesis import strategies as st

from deepflow.local.restart_policy import RestartPolicy, RestartState

seconds = st.floats(0, 1e6, allow_nan=False)


def _lives(policy: RestartPolicy, up_seconds: list[float]) -> list[tuple[RestartState, float]]:
    """The state and the delay after each of these lives."""
    state, now, results = RestartState(), 0.0, []
    for up in up_seconds:
        state = policy.started(state, now)
        now += up
        state, delay = policy.ended(state, now)
        results.append((state, delay))
        now += delay
    return results


@given(st.lists(seconds, max_size=200))
def test_the_delay_is_always_between_the_first_and_the_longest(ups: list[float]) -> None:
    policy = RestartPolicy()
    for state, delay in _lives(policy, ups):
        assert policy.first_seconds <= delay <= policy.max_seconds
        assert state.failures >= 1


@given(st.lists(st.floats(0, 9), min_size=2, max_size=3000))
def test_short_lives_never_shorten_the_delay(ups: list[float]) -> None:
    delays = [delay for _, delay in _lives(RestartPolicy(), ups)]
    assert delays == sorted(delays)


@given(st.lists(st.floats(0, 9), max_size=20), st.floats(10.1, 1e6))
def test_a_long_life_begins_anew(ups: list[float], long_life: float) -> None:
    policy = RestartPolicy()
    state, delay = _lives(policy, [*ups, long_life])[-1]
    assert (state.failures, delay) == (1, policy.first_seconds)


def test_the_delay_doubles_up_to_its_limit() -> None:
    policy = RestartPolicy(first_seconds=0.1, max_seconds=1.0)
    assert [delay for _, delay in _lives(policy, [0.0] * 6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
