"""A gateway that is to go refuses who comes, as the view tells it, before anybody stops it."""

import asyncio
import logging

from deepflow.v1 import cluster_pb2 as cluster
from deepflow.v1 import types_pb2 as types
from services.gateway.http.listener import Listener

log = logging.getLogger(__name__)

# For somebody else to give our port back.
RETRY_SECONDS = 0.5


class Leaving:
    """Keeps the listener as the cluster manager's latest word wants it."""

    def __init__(self, listener: Listener, linger_seconds: float) -> None:
        self._listener = listener
        self._linger_seconds = linger_seconds
        self._is_to_refuse = False
        self._is_refusing = False
        self._changed = asyncio.Event()

    def follow(self, view: cluster.ClusterView, own: cluster.Member) -> None:
        is_to_refuse = is_to_go(view, own)
        if is_to_refuse != self._is_to_refuse:
            self._is_to_refuse = is_to_refuse
            self._changed.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._is_to_refuse and not self._is_refusing:
                await self._refuse()
            elif self._is_refusing and not self._is_to_refuse:
                await self._resume()

    async def _refuse(self) -> None:
        """After a while: load balancers may learn late that it goes."""
        await asyncio.sleep(self._linger_seconds)
        if self._is_to_refuse:
            log.info("this gateway is to go: it refuses connections")
            self._listener.refuse()
            self._is_refusing = True

    async def _resume(self) -> None:
        try:
            await self._listener.resume()
        except OSError as error:
            log.error("this gateway stays after all, and cannot listen: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            self._changed.set()
        else:
            log.info("this gateway stays after all")
            self._is_refusing = False


def is_to_go(view: cluster.ClusterView, own: cluster.Member) -> bool:
    """Whether this life of it is drained."""
    return any(
        it.id == own.id
        and it.incarnation == own.incarnation
        and it.state == types.LIFECYCLE_STATE_DRAINING
        for it in view.members
    )
