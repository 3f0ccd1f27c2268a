"""Looks at Redis once a second, so that readiness is true and not remembered."""

import asyncio
import logging

from deepflow.errors import Unavailable
from deepflow.lifecycle import Lifecycle
from deepflow.v1 import types_pb2 as types
from services.kv_store import metrics
from services.kv_store.records.generation import Generation
from services.kv_store.redis_link import RedisLink

log = logging.getLogger(__name__)

# Until Redis was seen once somebody waits for the start: look more often.
FIRST_LOOK_SECONDS = 0.1


class Probe:
    """Moves the lifecycle between READY and STARTING as Redis comes and goes."""

    def __init__(
        self, lifecycle: Lifecycle, redis: RedisLink, generation: Generation, seconds: float
    ) -> None:
        self._lifecycle = lifecycle
        self._redis = redis
        self._generation = generation
        self._seconds = seconds
        self._known_generation = ""

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._seconds if self._known_generation else FIRST_LOOK_SECONDS)

    async def look(self) -> None:
        try:
            self._see(await self._generation.check())
            if not self._lifecycle.is_ready:
                await self._warn_of_forgetful_settings()
                self._lifecycle.to(types.LIFECYCLE_STATE_READY)
        except Unavailable as error:
            self._miss(error.message)
        metrics.AVAILABLE.set(self._lifecycle.is_ready)

    def _see(self, generation: str) -> None:
        if generation != self._known_generation:
            if self._known_generation:
                log.error("the records are of another generation: they were wiped or restored")
            log.info("records of generation %s", generation)
            self._known_generation = generation

    def _miss(self, reason: str) -> None:
        if reason != self._lifecycle.detail:
            log.warning("not available: %s", reason)
            self._lifecycle.to(types.LIFECYCLE_STATE_STARTING, reason)

    async def _warn_of_forgetful_settings(self) -> None:
        """Records need a Redis that neither evicts nor forgets."""
        persistence, memory = (
            await self._redis.info("persistence"),
            await self._redis.info("memory"),
        )
        if not persistence.get("aof_enabled"):
            log.warning("Redis keeps no append-only file: a restart of it loses records")
        if memory.get("maxmemory_policy") not in (None, "noeviction"):
            log.warning("Redis may evict records: set its maxmemory-policy to noeviction")
