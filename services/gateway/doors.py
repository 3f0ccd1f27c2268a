"""Keys, limits and metering of one gateway, put together: what handlers see of them."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from deepflow.access.records import AccessList, AccessRecords
from deepflow.bus import Bus
from deepflow.config import ConfigError
from deepflow.errors import RateLimited
from deepflow.rpc import Peer
from services.gateway.auth.follower import Follower
from services.gateway.auth.gate import CREATE_A_KEY, Gate, is_loopback
from services.gateway.auth.key_ring import KeyRing
from services.gateway.config import GatewayConfig
from services.gateway.http.exchange import Exchange
from services.gateway.limits.limiter import Limiter
from services.gateway.metering.meter import Meter

# How long a gateway for the world waits to learn whether there is any key.
FIRST_LOOK_SECONDS = 10.0


@dataclass(slots=True)
class Bill:
    """What one request cost; its handler fills it in."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Doors:
    def __init__(self, config: GatewayConfig, reporter: str, gateways: Callable[[], int]) -> None:
        self._config = config
        self._is_loopback = is_loopback(config.host)
        self._asks_nobody = config.access == "open"
        if self._asks_nobody and not self._is_loopback:
            raise ConfigError(
                f"DEEPFLOW_GATEWAY_ACCESS=open is for loopback interfaces only, not {config.host}"
            )
        self._peer = Peer(config.kv_store_address, config.cluster_token)
        self.records = AccessRecords(self._peer)
        self.ring = KeyRing(config.cluster_token)
        self._follower = Follower(self.records, self._adopt)
        self._limiter = Limiter(reporter, self._peer, gateways)
        self._meter = Meter(reporter, self._peer)
        self.gate = Gate(
            self.ring,
            self._follower,
            is_loopback=self._is_loopback,
            asks_nobody=self._asks_nobody,
        )

    async def start(self, bus: Bus) -> None:
        """Raises ConfigError rather than serve the world without any key."""
        if self._asks_nobody:
            return
        self._limiter.start()
        self._meter.start()
        await self._follower.start(bus)
        if self._is_loopback:
            return
        await self._follower.until_known(FIRST_LOOK_SECONDS)
        if self.ring.is_known and not self.ring.has_keys:
            raise ConfigError(
                f"there is no API key yet, so this gateway may not listen on {self._config.host}:"
                f" make one with '{CREATE_A_KEY}' while the platform runs on 127.0.0.1, then"
                " start again"
            )

    async def close(self) -> None:
        await self._follower.close()
        await self._limiter.close()
        await self._meter.close()
        await self._peer.close()

    @contextlib.asynccontextmanager
    async def work(self, exchange: Exchange, model: str, estimate: int) -> AsyncIterator[Bill]:
        """One request's stay: held to its tenant's limits, metered when it leaves.

        `estimate` is what its prompt is thought to cost; RateLimited where that is too much.
        """
        caller, bill = exchange.caller, Bill()
        try:
            spending = await self._limiter.admit(caller.tenant, estimate)
        except RateLimited:
            exchange.headers += self._limiter.headers(caller.tenant)
            raise
        exchange.headers += self._limiter.headers(caller.tenant)
        try:
            yield bill
        finally:
            tokens = bill.prompt_tokens + bill.completion_tokens
            if spending is not None:
                self._limiter.settle(spending, tokens)
            if tokens and not self._asks_nobody:
                self._meter.ledger.add(
                    caller.tenant.name,
                    caller.key_id,
                    model,
                    prompt=bill.prompt_tokens,
                    completion=bill.completion_tokens,
                    cached=bill.cached_tokens,
                )

    def _adopt(self, known: AccessList) -> None:
        self.ring.adopt(known)
        self._limiter.adjust(self.ring.tenants())
