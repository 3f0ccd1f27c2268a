"""Whether one more task is of use where it would go."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.job_executor.scheduling.capacity import (
    STEPS_AHEAD,
    Capacity,
    Occupancy,
    Rows,
    has_room,
    spare_tasks,
    tasks_max,
)

CAPACITIES = st.builds(
    Capacity,
    sequences=st.integers(1, 300),
    step_tokens=st.integers(0, 4096),
    block_size=st.integers(0, 128),
)


@st.composite
def occupancies(draw: st.DrawFn) -> Occupancy:
    tasks = draw(st.integers(0, 400))
    return Occupancy(
        tasks=tasks,
        unstarted=draw(st.integers(0, tasks)),
        unstarted_tokens=draw(st.integers(0, 50_000)),
        others=draw(st.integers(0, 400)),
        free_blocks=draw(st.none() | st.integers(0, 5000)),
    )


@settings(deadline=None)
@given(CAPACITIES, st.integers(1, 5), st.integers(0, 400))
def test_an_empty_executor_has_room_whatever_others_do(
    capacity: Capacity, job_executors: int, others: int
) -> None:
    assert has_room(capacity, Occupancy(others=others, free_blocks=0), job_executors)


@settings(deadline=None)
@given(CAPACITIES, occupancies(), st.integers(1, 5))
def test_rows_and_a_few_more_are_all(
    capacity: Capacity, occupancy: Occupancy, job_executors: int
) -> None:
    if has_room(capacity, occupancy, job_executors):
        assert occupancy.tasks < capacity.sequences + spare_tasks(capacity.sequences)


@settings(deadline=None)
@given(CAPACITIES, occupancies())
def test_nobody_runs_dry(capacity: Capacity, occupancy: Occupancy) -> None:
    """While rows are free, a few tasks that have not begun are always there to take them."""
    if occupancy.tasks < capacity.sequences and not occupancy.unstarted:
        assert has_room(capacity, occupancy)


def test_prompts_wait_here_once_they_fill_the_next_steps() -> None:
    capacity = Capacity(sequences=64, step_tokens=512)
    fits = Occupancy(tasks=10, unstarted=10, unstarted_tokens=STEPS_AHEAD * 512 - 1)
    full = Occupancy(tasks=10, unstarted=10, unstarted_tokens=STEPS_AHEAD * 512)
    assert has_room(capacity, fits) and not has_room(capacity, full)


def test_tasks_wait_here_while_there_is_no_memory_for_them_there() -> None:
    capacity = Capacity(sequences=64, step_tokens=512, block_size=16)
    running = {"tasks": 20, "unstarted": 4, "unstarted_tokens": 100}
    assert has_room(capacity, Occupancy(**running, free_blocks=24))
    assert not has_room(capacity, Occupancy(**running, free_blocks=23))
    assert has_room(capacity, Occupancy(**running, free_blocks=None))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.lists(st.integers(0, 400), max_size=1))
def test_every_job_executor_has_its_share(rows: int, job_executors: int, others: list[int]) -> None:
    at_least = tasks_max(Capacity(sequences=rows), sum(others), job_executors)
    assert at_least * job_executors >= rows


def test_one_row_in_sixteen_is_kept_for_those_with_less() -> None:
    assert not Rows(total=64, taken=59).are_scarce
    assert Rows(total=64, taken=60).are_scarce
    assert not Rows(total=15, taken=15).are_scarce, "too few to keep one"


def test_what_others_leave_is_ours() -> None:
    capacity = Capacity(sequences=64)
    assert tasks_max(capacity, 0, 2) == 64 + 2
    assert tasks_max(capacity, 20, 2) == 44 + 2
    assert tasks_max(capacity, 60, 2) == 32 + 2
    assert tasks_max(capacity, 60, 1) == 64 + 2
