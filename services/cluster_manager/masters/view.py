"""The view: numbered, pushed on every change, and stored behind the scenes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from deepflow.bus import Bus
from deepflow.errors import Conflict, DeepFlowError
from deepflow.membership import VIEW_RECORD, VIEW_SUBJECT
from deepflow.v1 import cluster_pb2, events_pb2
from services.cluster_manager import metrics
from services.cluster_manager.masters.leadership import LEASE_NAME, Leadership
from services.cluster_manager.store import Store

log = logging.getLogger(__name__)

# Changes that come together travel together.
COALESCE_SECONDS = 0.02
STORE_PAUSE_SECONDS = 0.25
# A push may be lost; the same view again is cheap and ignored by who has it.
REPEAT_SECONDS = 5.0


class ViewPublisher:
    def __init__(
        self,
        bus: Bus,
        store: Store,
        leadership: Leadership,
        fill: Callable[[cluster_pb2.ClusterView], None],
    ) -> None:
        """`fill` writes members and deployments as they are now."""
        self._bus = bus
        self._store = store
        self._leadership = leadership
        self._fill = fill
        self._view = cluster_pb2.ClusterView()
        self._is_stale = True
        self._stored = (0, 0)  # term and version of what the records hold
        self._to_publish = asyncio.Event()
        self._to_store = asyncio.Event()

    @property
    def number(self) -> tuple[int, int]:
        """Term and version of the last that was given to anybody."""
        return self._view.term, self._view.version

    def begin(self, term: int) -> None:
        """A new term: its views win over all of the terms before, whatever their number."""
        self._view = cluster_pb2.ClusterView(term=term)
        self.touch()

    def touch(self) -> None:
        self._is_stale = True
        self._to_publish.set()
        self._to_store.set()

    def current(self) -> cluster_pb2.ClusterView:
        """The view with every change so far; a change is a new version."""
        if self._is_stale:
            view = cluster_pb2.ClusterView(term=self._view.term, version=self._view.version + 1)
            self._fill(view)
            self._view, self._is_stale = view, False
            metrics.VIEW_VERSION.set(view.version)
        return self._view

    async def publish_again(self) -> None:
        self._to_publish.set()

    async def publish_forever(self) -> None:
        await self._bus.connected.wait()
        while True:
            with contextlib.suppress(TimeoutError):  # nothing changed: say the same again
                async with asyncio.timeout(REPEAT_SECONDS):
                    await self._to_publish.wait()
            await asyncio.sleep(COALESCE_SECONDS)
            self._to_publish.clear()
            if self._leadership.token:
                event = events_pb2.ViewChanged(view=self.current())
                await self._bus.publish(VIEW_SUBJECT, event)

    async def store_forever(self) -> None:
        while True:
            await self._to_store.wait()
            self._to_store.clear()
            if self._leadership.token and not await self._write():
                self._to_store.set()
            await asyncio.sleep(STORE_PAUSE_SECONDS)

    async def flush(self) -> None:
        """The last word of a leader that goes: its successor begins with it."""
        view = self.current()
        if self._leadership.token and (view.term, view.version) != self._stored:
            await self._write()

    async def _write(self) -> bool:
        view = self.current()
        value = view.SerializeToString()
        try:
            await self._store.put(VIEW_RECORD, value, LEASE_NAME, self._leadership.token)
        except Conflict as error:
            log.error("the view was not stored: %s", error)
            self._leadership.look_soon()
            return False
        except DeepFlowError as error:
            log.debug("the view is not stored yet: %s", error)
            return False
        self._stored = (view.term, view.version)
        return True
