"""Tells gateways that a key or a tenant was written, whoever wrote it."""

from deepflow.access.records import CHANGED_SUBJECT, KEYS, TENANTS
from deepflow.bus import Bus
from deepflow.v1 import access_pb2


class Announcer:
    """Nobody depends on it: gateways read the records again every few seconds."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def written(self, record_key: str) -> None:
        if record_key.startswith((KEYS, TENANTS)):
            event = access_pb2.AccessChanged(record_key=record_key)
            await self._bus.publish(CHANGED_SUBJECT, event)
