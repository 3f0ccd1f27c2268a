"""Who hangs: never one that gives signs or waits for others, always one that owes a sign."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.task_executor.flowserve.marks import Doing, Mark
from services.task_executor.flowserve.vigil import (
    LOOK_SECONDS,
    LOOK_SECONDS_MAX,
    SILENCE_SECONDS_MIN,
    SLOW_SECONDS,
    Look,
    Silence,
    Verdict,
    allowed_seconds,
    judge,
)

QUICK = 0.01  # seconds that are expected of a stretch of work
WORKING = Look(Mark(Doing.WORKING, 5, QUICK))
MEETING = Look(Mark(Doing.MEETING, 7, QUICK))
RESTING = Look(Mark(Doing.RESTING, 9, QUICK))
LOADING = Look(Mark(Doing.LOADING, 3))
TOLD = replace(RESTING, is_told=True)

marks = st.builds(
    Mark,
    st.sampled_from(Doing),
    st.integers(1, 1 << 60),
    st.sampled_from([0.0, QUICK, 0.3, 10.0]),
)
looks = st.builds(
    Look,
    marks,
    is_told=st.booleans(),
    passed_seconds=st.floats(0, 100),
    excused_seconds=st.floats(0, 100),
    has_computed=st.booleans(),
)


def judged_after(seconds: float, looks: Sequence[Look]) -> Verdict | None:
    """What is said when all have shown the same for so long."""
    silences = [Silence(look.mark) for look in looks]
    for _ in range(round(seconds / LOOK_SECONDS)):
        silences = [it.after(look) for it, look in zip(silences, looks, strict=True)]
        if verdict := judge(silences, looks):
            return verdict
    return None


@pytest.mark.parametrize(
    ("others", "hanging"),
    [
        ([MEETING], WORKING),  # an endless loop, a lock, a device call that never returns
        ([MEETING], TOLD),  # it does not read what it is told
        ([WORKING], replace(TOLD, mark=replace(TOLD.mark, since_ns=1))),
        ([RESTING, MEETING, RESTING], WORKING),
        ([MEETING, MEETING], replace(MEETING, mark=replace(MEETING.mark, since_ns=2))),
    ],
)
def test_who_hangs_is_named_within_two_seconds(others: list[Look], hanging: Look) -> None:
    verdict = judged_after(1.5, [*others, hanging])
    assert verdict is not None
    assert verdict.rank == len(others)
    assert verdict.seconds > SILENCE_SECONDS_MIN


@pytest.mark.parametrize(
    "fine",
    [
        [RESTING, RESTING],  # nobody asks for anything
        [replace(WORKING, mark=replace(WORKING.mark, expected_seconds=10.0)), MEETING],
        [replace(WORKING, mark=replace(WORKING.mark, expected_seconds=0.0)), MEETING],
        [replace(WORKING, excused_seconds=LOOK_SECONDS), MEETING],  # others have the CPU
        [LOADING, RESTING],
        [replace(LOADING, has_computed=False), RESTING],
        [LOADING, MEETING],  # joins before the others
    ],
)
def test_nobody_hangs_here(fine: list[Look]) -> None:
    assert judged_after(SLOW_SECONDS - 1, fine) is None


@pytest.mark.parametrize(
    "slow",
    [
        [replace(LOADING, has_computed=False), RESTING],
        [replace(WORKING, mark=replace(WORKING.mark, expected_seconds=0.0)), MEETING],
        [replace(WORKING, excused_seconds=LOOK_SECONDS), MEETING],
        [replace(MEETING, mark=replace(MEETING.mark, expected_seconds=0.0))],
    ],
)
def test_what_may_be_slow_may_not_be_so_for_ever(slow: list[Look]) -> None:
    verdict = judged_after(SLOW_SECONDS + 1, slow)
    assert verdict is not None
    assert verdict.rank == 0
    assert verdict.seconds >= SLOW_SECONDS


def test_weights_that_take_long_are_waited_for() -> None:
    assert judged_after(20 * SLOW_SECONDS, [LOADING, RESTING]) is None


@given(st.lists(looks, max_size=60))
def test_who_gives_signs_never_hangs(seen: list[Look]) -> None:
    silence = Silence(Mark())
    for number, look in enumerate(seen, 1):
        alive = replace(look, mark=replace(look.mark, since_ns=number))
        silence = silence.after(alive)
        assert judge([silence], [alive]) is None


@given(st.lists(looks, min_size=1, max_size=5), st.floats(0, 1e6))
def test_a_look_that_comes_late_convicts_nobody(seen: list[Look], seconds: float) -> None:
    late = [replace(look, passed_seconds=seconds) for look in seen]
    silences = [Silence(look.mark).after(look) for look in late]
    assert judge(silences, late) is None
    assert all(it.seconds <= LOOK_SECONDS_MAX for it in silences)


@given(st.lists(looks, min_size=1, max_size=5), st.lists(st.floats(0, 500), min_size=5, max_size=5))
def test_a_verdict_names_one_who_was_silent_for_too_long(
    seen: list[Look], silent: list[float]
) -> None:
    silences = [Silence(it.mark, s, s) for it, s in zip(seen, silent, strict=False)]
    verdict = judge(silences, seen)
    owing = [look for look in seen if not look.is_waiting]
    if verdict is not None:
        named = seen[verdict.rank]
        assert silences[verdict.rank].seconds > allowed_seconds(named.mark)
        assert not named.is_waiting or (named.mark.doing is Doing.MEETING and not owing)
    else:
        assert all(
            silence.seconds <= max(SLOW_SECONDS, allowed_seconds(look.mark))
            for silence, look in zip(silences, seen, strict=True)
            if not look.is_waiting
        )
