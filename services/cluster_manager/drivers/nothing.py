"""Driver "none": somebody else runs the processes, and they come as members."""

from collections.abc import Callable, Mapping

from services.cluster_manager.drivers.base import PodReport
from services.cluster_manager.reconcile.state import Kind


class NoDriver:
    reports: Mapping[str, PodReport] | None = None

    def start(self, on_change: Callable[[], None]) -> None:
        pass

    async def start_pod(
        self, kind: Kind, name: str, settings: Mapping[str, str], term: int
    ) -> None:
        raise AssertionError("no pods are planned where there is no driver")

    async def stop_pod(self, name: str, term: int) -> None:
        raise AssertionError("no pods are planned where there is no driver")

    async def close(self) -> None:
        pass
