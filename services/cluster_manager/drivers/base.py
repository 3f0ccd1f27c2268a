"""The contract of every driver."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.cluster_manager.reconcile.state import Kind


@dataclass(frozen=True, slots=True)
class PodReport:
    """One process, in the driver's words."""

    name: str
    kind: Kind
    # 0 where there is none at the moment.
    pid: int
    is_running: bool
    is_stopping: bool
    since_unix_ms: int


class Driver(Protocol):
    """Starts and stops pods, and says what there is. Decides nothing."""

    def start(self, on_change: Callable[[], None]) -> None:
        """Begin to watch; `on_change` is called after every change of `reports`."""

    @property
    def reports(self) -> Mapping[str, PodReport] | None:
        """What runs by the latest word; None while that is not known."""

    async def start_pod(
        self, kind: Kind, name: str, settings: Mapping[str, str], term: int
    ) -> None:
        """Idempotent by name. Raises DeepFlowError where it cannot be started.

        `term` is that of the leadership in whose name it is asked for; an older one is refused.
        """

    async def stop_pod(self, name: str, term: int) -> None:
        """Returns once the pod is gone; one that is not there is fine."""

    async def close(self) -> None:
        """Let go of the watch; the pods go on."""
