"""Who leads: a fenced lease in the records.

While the records are away nobody new leads, and who led goes on with what it knows.
"""

import asyncio
import contextlib
import logging
from typing import Protocol

from deepflow import clock
from deepflow.errors import DeepFlowError, Unavailable
from services.cluster_manager.store import Lease, Store

log = logging.getLogger(__name__)

LEASE_NAME = "cluster-manager"
RETRY_SECONDS = 0.1
RETRY_MAX_SECONDS = 1.0
KNOWN_TOKEN_MAX = 1 << 48  # more the records do not believe


class Office(Protocol):
    """What leadership is taken of."""

    async def take(self, token: int, *, is_continued: bool) -> None:
        """This process leads from now on. Continued: nobody else led since it last did."""

    def give_up(self, leader: str) -> None:
        """Another process leads."""

    def wait(self, reason: str) -> None:
        """Who leads cannot be told now."""


class Leadership:
    """Holds the lease as `<id>@<incarnation>`: a new life takes over from its own former one."""

    def __init__(
        self, store: Store, office: Office, *, id: str, incarnation: int, ttl_seconds: float
    ) -> None:
        self._store = store
        self._office = office
        self._id = id
        self._incarnation = incarnation
        self._ttl_seconds = ttl_seconds
        self._pause = RETRY_SECONDS
        self._trouble = ""
        self._soon = asyncio.Event()
        self._looked_at = clock.monotonic()
        # Fencing token of this process's leadership; 0 = it does not lead.
        self.token = 0
        # The highest that anybody leads or led by, as far as this process was told.
        self._known_token = 0
        self.leader = ""

    def require(self) -> int:
        """The fencing token; raises where this process does not lead."""
        if self.token:
            return self.token
        known = f"leader is {self.leader}" if self.leader else "no leader is known yet"
        why = f" ({self._trouble})" if self._trouble else ""
        raise Unavailable(
            f"not the leader; {known}{why}", reason="not_leader", retry_after_seconds=RETRY_SECONDS
        )

    @property
    def is_sure(self) -> bool:
        """False for a leader that slept through its lease, until it has looked again."""
        return bool(self.token) and clock.monotonic() - self._looked_at < self._ttl_seconds

    def look_soon(self) -> None:
        """A fenced write was refused: somebody else may lead."""
        self._soon.set()

    def note_term(self, term: int) -> None:
        """A member goes by a view of this term.

        One beyond this leader's own means that it was deposed, or that the records were restored
        from an older copy and count from there: both are seen at the next look.
        """
        if self._known_token < term <= KNOWN_TOKEN_MAX:
            self._known_token = term
            if self.token and term > self.token:
                self.look_soon()

    async def run(self) -> None:
        await self._store.wait_until_listening()
        while True:
            pause = await self._step()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._soon.wait()
            self._soon.clear()

    async def resign(self) -> None:
        if not self.token:
            return
        try:
            await self._store.release(LEASE_NAME, self._holder, self.token)
        except DeepFlowError as error:
            log.info("the lease was not given back: %s", error)
        self.token = 0

    @property
    def _holder(self) -> str:
        return f"{self._id}@{self._incarnation}"

    async def _step(self) -> float:
        """One look at the lease; answers how long until the next."""
        try:
            lease = await self._acquire()
            await self._settle(lease)
        except DeepFlowError as error:
            return self._wait_out(error)
        finally:
            self._looked_at = clock.monotonic()
        self._trouble, self._pause = "", RETRY_SECONDS
        renew = self._ttl_seconds / 3
        return renew if self.token else min(renew, max(lease.remaining_seconds, RETRY_SECONDS))

    async def _acquire(self) -> Lease:
        lease = await self._ask()
        if not lease.is_mine and self._is_former_self(lease.holder):
            await self._store.release(LEASE_NAME, lease.holder, lease.token)
            lease = await self._ask()
        self._known_token = max(self._known_token, lease.token)
        return lease

    async def _ask(self) -> Lease:
        ttl, known = self._ttl_seconds, self._known_token
        return await self._store.acquire(LEASE_NAME, self._holder, ttl, known)

    def _is_former_self(self, holder: str) -> bool:
        id, _, incarnation = holder.rpartition("@")
        return id == self._id and incarnation.isdecimal() and int(incarnation) < self._incarnation

    async def _settle(self, lease: Lease) -> None:
        self.leader = lease.holder.rpartition("@")[0]
        if not lease.is_mine:
            if self.token:
                log.error("leadership is lost to %s", self.leader)
                self.token = 0
            self._office.give_up(self.leader)
        elif lease.token != self.token:
            is_continued = bool(self.token) and lease.token == self.token + 1
            log.info("leading with token %d", lease.token)
            await self._office.take(lease.token, is_continued=is_continued)
            self.token = lease.token

    def _wait_out(self, error: DeepFlowError) -> float:
        if error.message != self._trouble:
            log.warning("the records are away, leadership stays as it is: %s", error)
            self._office.wait(f"waiting for the records: {error.message}")
        self._trouble = error.message
        self._pause = min(self._pause * 1.5, RETRY_MAX_SECONDS)
        return self._pause
