"""Who of the candidates may get a task that begins with a context. Pure.

A policy weighs what is cached against load, so that it sends little contexts anywhere. Who makes a
context explicit wants it found: those that hold it come first, until they are clearly fuller than
the rest. Then it is computed elsewhere, too, and kept there from then on.
"""

from dataclasses import replace

from services.job_executor.scheduling.least_load import load_of
from services.job_executor.scheduling.policy import GroupView, TaskExecutorLoad

# Tasks that a holder may have more than the least loaded of all.
LEAD_TASKS_MAX = 8


def with_cached(group: GroupView, task_executor_id: str, tokens: int) -> GroupView:
    """The same candidates, of which this one is known to hold at least so many tokens."""
    return GroupView(
        tuple(
            replace(it, cached_tokens=max(it.cached_tokens, tokens))
            if it.id == task_executor_id
            else it
            for it in group.executors
        )
    )


def holders_of(group: GroupView, hits: dict[str, int]) -> tuple[TaskExecutorLoad, ...]:
    return tuple(it for it in group.executors if it.cached_tokens >= hits[it.id] > 0)


def prefer_holders(group: GroupView, hits: dict[str, int]) -> GroupView:
    """`hits`: what of the context, in tokens, each should have cached, were it a holder."""
    holders = holders_of(group, hits)
    if not holders:
        return group
    lead = min(map(load_of, holders)) - min(map(load_of, group.executors))
    return GroupView(holders) if lead <= LEAD_TASKS_MAX else group
