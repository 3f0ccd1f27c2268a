"""The task executor where a task causes the least work: tokens to compute, and others to wait for.

Locality alone sends everybody to whoever holds the prompt that all share; load alone computes the
same prompt everywhere. Both are counted in tokens here, so that they can be added.
"""

from services.job_executor.scheduling.least_load import load_of
from services.job_executor.scheduling.policy import (
    GroupView,
    Placement,
    RequestFeatures,
    TaskExecutorLoad,
)

# What one more task at a task executor costs a newcomer there, in tokens of prefill. Simulated from
# 32 to 1024: less lets one prompt that all share gather a crowd, more parts conversations from
# their caches.
TASK_TOKENS = 512


class Prefix:
    """Among equals it takes turns, so that what nobody holds is spread over all caches."""

    def __init__(self) -> None:
        self._turn = 0
        self._last_turns: dict[str, int] = {}

    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        by_id = {executor.id: executor for executor in group.executors}
        scores = {name: _cost(features, it) for name, it in by_id.items()}
        last = self._last_turns
        chosen = min(scores, key=lambda name: (scores[name], last.get(name, 0), name))
        self._turn += 1
        self._last_turns = {name: last.get(name, 0) for name in scores} | {chosen: self._turn}
        return Placement(chosen, scores, _explain(features, by_id[chosen]))


def _cost(features: RequestFeatures, executor: TaskExecutorLoad) -> float:
    uncached = max(0, features.prompt_tokens - executor.cached_tokens)
    return float(uncached + TASK_TOKENS * load_of(executor))


def _explain(features: RequestFeatures, executor: TaskExecutorLoad) -> str:
    held = f"{executor.cached_tokens} of {features.prompt_tokens} prompt tokens are cached there"
    return f"{held}, load {load_of(executor)}"
