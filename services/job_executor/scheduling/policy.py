"""What a policy sees and what it answers."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What is known of one task before it runs."""

    model: str
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class TaskExecutorLoad:
    """One candidate. `reported` counts everybody's tasks there, ours among them."""

    id: str
    outstanding: int  # ours, right now
    reported: int = 0  # waiting and running, by its last heartbeat
    outstanding_at_report: int = 0  # ours when that heartbeat came
    cached_tokens: int = 0  # of this task's prompt, those that it holds, as far as we know


@dataclass(frozen=True, slots=True)
class GroupView:
    """The task executors that can take the task: ready, linked, holding its model."""

    executors: tuple[TaskExecutorLoad, ...]

    def uncached(self, task_executor_id: str, num_tokens: int) -> int:
        """Of the task's tokens, those that this one would have to compute."""
        cached = sum(it.cached_tokens for it in self.executors if it.id == task_executor_id)
        return max(0, num_tokens - cached)


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer, with what it was weighed by, for logs and traces."""

    task_executor_id: str
    scores: dict[str, float] = field(default_factory=dict)  # by task executor; least wins
    explanation: str = ""


class Policy(Protocol):
    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        """Pick one of `group`, which is never empty. Changes nothing outside the policy."""
