"""Policies by name."""

from collections.abc import Callable

from services.job_executor.scheduling.least_load import LeastLoad
from services.job_executor.scheduling.policy import Policy
from services.job_executor.scheduling.prefix import Prefix

DEFAULT_POLICY = "prefix"

_POLICIES: dict[str, Callable[[], Policy]] = {"least_load": LeastLoad, "prefix": Prefix}


def make_policy(name: str) -> Policy:
    """Raises ValueError that lists the choices."""
    if name not in _POLICIES:
        raise ValueError(f"no such policy: {name!r}; choose one of {', '.join(sorted(_POLICIES))}")
    return _POLICIES[name]()
