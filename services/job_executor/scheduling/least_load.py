"""The task executor with the fewest tasks: ours as of now, those of others as last reported."""

from services.job_executor.scheduling.policy import (
    GroupView,
    Placement,
    RequestFeatures,
    TaskExecutorLoad,
)


class LeastLoad:
    """Among equals it takes turns, so that light traffic warms every cache and herds on none."""

    def __init__(self) -> None:
        self._turn = 0
        self._last_turns: dict[str, int] = {}

    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        scores = {executor.id: float(load_of(executor)) for executor in group.executors}
        last = self._last_turns
        chosen = min(scores, key=lambda name: (scores[name], last.get(name, 0), name))
        self._turn += 1
        self._last_turns = {name: last.get(name, 0) for name in scores} | {chosen: self._turn}
        return Placement(chosen, scores, f"load {scores[chosen]:.0f} is the least")


def load_of(executor: TaskExecutorLoad) -> int:
    """A heartbeat also counts the tasks we had there then: those must not weigh twice."""
    others = max(0, executor.reported - executor.outstanding_at_report)
    return executor.outstanding + others
