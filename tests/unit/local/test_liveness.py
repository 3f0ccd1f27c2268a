"""When a process that exists is taken for dead."""

from hypothesis import given
from hypothesis import strategies as st

from deepflow.local.liveness import MISSES_MAX, Pulse


@given(st.lists(st.tuples(st.integers(1, 2), st.booleans())))
def test_only_misses_in_a_row_of_one_life_are_a_death(looks: list[tuple[int, bool]]) -> None:
    pulse = Pulse(pid=1)
    for index, (pid, has_answered) in enumerate(looks):
        pulse = pulse.after(pid, has_answered=has_answered)
        last = looks[max(0, index + 1 - MISSES_MAX) : index + 1]
        all_missed = len(last) == MISSES_MAX and last == [(pid, False)] * MISSES_MAX
        assert pulse.is_dead == all_missed
