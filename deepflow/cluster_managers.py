"""A client of all cluster managers: finds the one that leads, and finds it again."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from deepflow import clock
from deepflow.errors import DeadlineExceeded, Unavailable
from deepflow.rpc import Peer
from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceStub

if TYPE_CHECKING:
    from deepflow.v1.cluster_pb2_grpc import ClusterManagerServiceAsyncStub

Response = TypeVar("Response")

PAUSE_FIRST_SECONDS = 0.05
PAUSE_MAX_SECONDS = 0.5


class ClusterManagers:
    """`addresses`: host:port of each, separated by commas. Only the leader answers."""

    def __init__(self, addresses: str, token: str) -> None:
        peers = [Peer(address.strip(), token) for address in addresses.split(",")]
        self._all = [(peer, ClusterManagerServiceStub(peer.channel)) for peer in peers]
        self._current = 0

    async def call(
        self,
        method: Callable[["ClusterManagerServiceAsyncStub"], Callable[..., Awaitable[Response]]],
        request: Any,
        *,
        timeout_seconds: float,
        idempotent: bool = False,
    ) -> Response:
        """Asks each once, beginning with who answered last; idempotent: until the time is up."""
        deadline = clock.monotonic() + timeout_seconds
        pause, tries = PAUSE_FIRST_SECONDS, 0
        while True:
            peer, stub = self._all[self._current]
            remaining = max(deadline - clock.monotonic(), 0.001)
            try:
                return await peer.call(method(stub), request, timeout_seconds=remaining)
            except DeadlineExceeded:
                self._turn()
                raise
            except Unavailable:
                self._turn()
                tries += 1
                was_last = tries >= len(self._all) and not idempotent
                if was_last or clock.monotonic() + pause >= deadline:
                    raise
            if tries % len(self._all) == 0:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, PAUSE_MAX_SECONDS)

    async def close(self) -> None:
        for peer, _ in self._all:
            await peer.close()

    def _turn(self) -> None:
        self._current = (self._current + 1) % len(self._all)
