from hypothesis import given
from hypothesis import strategies as st

from services.job_executor.contexts.placing import LEAD_TASKS_MAX, prefer_holders, with_cached
from services.job_executor.scheduling.least_load import load_of
from services.job_executor.scheduling.policy import GroupView, TaskExecutorLoad

EXECUTORS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0, 16, 64, 128])), min_size=1, max_size=6
)


def group_of(executors: list[tuple[int, int]]) -> GroupView:
    return GroupView(
        tuple(
            TaskExecutorLoad(f"te-{i}", outstanding, cached_tokens=cached)
            for i, (outstanding, cached) in enumerate(executors)
        )
    )


@given(EXECUTORS, st.sampled_from([0, 64]))
def test_a_holder_goes_first_unless_all_holders_are_far_fuller(
    executors: list[tuple[int, int]], hit: int
) -> None:
    group = group_of(executors)
    chosen = prefer_holders(group, {it.id: hit for it in group.executors})
    holders = {it for it in group.executors if hit and it.cached_tokens >= hit}
    least = min(load_of(it) for it in group.executors)
    if holders and min(map(load_of, holders)) <= least + LEAD_TASKS_MAX:
        assert set(chosen.executors) == holders
    else:
        assert chosen == group
    assert chosen.executors


@given(EXECUTORS, st.integers(0, 7), st.integers(0, 200))
def test_what_is_known_of_one_changes_nobody_else(
    executors: list[tuple[int, int]], index: int, tokens: int
) -> None:
    group = group_of(executors)
    shown = with_cached(group, f"te-{index}", tokens)
    for before, after in zip(group.executors, shown.executors, strict=True):
        if before.id == f"te-{index}":
            assert after.cached_tokens == max(before.cached_tokens, tokens)
        else:
            assert after == before
