"""Who goes first, and how much of a step prefills may take: one class a file, chosen by name."""

from collections.abc import Callable

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.scheduler.policies.base import Policy
from services.task_executor.flowserve.scheduler.policies.fcfs import Fcfs
from services.task_executor.flowserve.scheduler.policies.priority import Priority
from services.task_executor.flowserve.scheduler.policies.slo import Slo

POLICIES: dict[str, Callable[[EngineConfig], Policy]] = {
    "fcfs": lambda config: Fcfs(),
    "priority": lambda config: Priority(),
    "slo": lambda config: Slo(config.tpot_seconds, config.ttft_seconds),
}


def make_policy(config: EngineConfig) -> Policy:
    if config.policy not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise ValueError(f"policy is {config.policy!r}, but must be one of: {known}")
    return POLICIES[config.policy](config)
