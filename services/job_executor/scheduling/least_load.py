"""The task executor with the fewest tasks: ours as of now, those of others as last reported."""

from services.job_executor.scheduling.policy import (
    GroupView,
    Placement,
    RequestFeatures,
    TaskExecutorLoad,
)


class LeastLoad:
    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        scores = {executor.id: float(load_of(executor)) for executor in group.executors}
        chosen = min(scores, key=lambda name: (scores[name], name))
        return Placement(chosen, scores, f"load {scores[chosen]:.0f} is the least")


def load_of(executor: TaskExecutorLoad) -> int:
    """A heartbeat also counts the tasks we had there then: those must not weigh twice."""
    others = max(0, executor.reported - executor.outstanding_at_report)
    return executor.outstanding + others
