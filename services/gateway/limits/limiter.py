"""Holds tenants to their limits, over all gateways: one batched question to the store at a time."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from deepflow import clock
from deepflow.background import end
from deepflow.errors import DeepFlowError, Internal
from deepflow.rpc import Peer
from deepflow.v1 import access_pb2, store_pb2
from deepflow.v1.store_pb2_grpc import CounterServiceStub
from services.gateway import metrics
from services.gateway.limits.account import Account, Spending
from services.gateway.limits.verdict import Verdict

log = logging.getLogger(__name__)

CALL_SECONDS = 1.0
# While the store is away it is asked again this often; requests do not wait for that.
AWAY_SECONDS = 1.0
LEASE_SECONDS = 15.0
RENEW_SECONDS = 5.0
# Nobody waits longer for an answer of the store: longer than a question before and the own one.
WAIT_SECONDS = 3.0
# Others may take what an answer left: then it is asked again, but not for ever.
ROUNDS_MAX = 3
# Two limits a minute and one of places each; the store takes 512 a batch.
ACCOUNTS_MAX = 256


class Limiter:
    """`gateways` says how many share the limits while the store is away."""

    def __init__(self, holder: str, store: Peer, gateways: Callable[[], int]) -> None:
        self._holder = holder
        self._peer = store
        self._stub = CounterServiceStub(store.channel)
        self._gateways = gateways
        self._accounts: dict[str, Account] = {}
        self._is_away = False
        self._renew_at = 0.0
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        await end(self._running)
        _let_on(self._waiting)

    def adjust(self, tenants: dict[str, access_pb2.Tenant]) -> None:
        """Limits may have changed. A tenant that is gone keeps its account while it has work."""
        for name, account in list(self._accounts.items()):
            if name in tenants:
                account.adjust(tenants[name])
            elif account.slots is None or not account.slots.is_alive:
                del self._accounts[name]

    async def admit(self, tenant: access_pb2.Tenant, tokens: int) -> Spending | None:
        """Give the spending to `settle` in the end. None: there is nothing to hold it to."""
        account = self._account(tenant)
        if account is None:
            return None
        for _ in range(ROUNDS_MAX):
            verdict = account.verdict(tokens, clock.monotonic(), self._sharers)
            if verdict is not Verdict.ASK:
                break
            await self._ask(account, tokens)
        # After an answer that does not do there is nothing more to ask for.
        if account.verdict(tokens, now := clock.monotonic(), self._sharers) is not Verdict.ADMIT:
            metrics.REFUSED_BY_LIMIT.inc()
            raise account.refusal(tokens, now, self._sharers)
        spending = account.spend(tokens, now)
        if account.has_news:
            self._wake.set()
        return spending

    def settle(self, spending: Spending, tokens: int) -> None:
        spending.account.settle(spending, tokens, clock.monotonic())
        if spending.account.has_news:
            self._wake.set()

    def headers(self, tenant: access_pb2.Tenant) -> list[tuple[bytes, bytes]]:
        account = self._accounts.get(tenant.name)
        return [] if account is None else account.headers(clock.monotonic(), self._sharers)

    @property
    def _sharers(self) -> int | None:
        return self._gateways() if self._is_away else None

    def _account(self, tenant: access_pb2.Tenant) -> Account | None:
        limits = (tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent_requests)
        if not any(limits):
            return None
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant)
        return account

    async def _ask(self, account: Account, tokens: int) -> None:
        """Return after the next answer of the store, or when there is none."""
        account.demand.add(tokens)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wake.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await waiter
        except TimeoutError:
            log.error("no answer about limits within %.0f s", WAIT_SECONDS)
        finally:
            account.demand.remove(tokens)

    async def _run(self) -> None:
        while True:
            is_renewal = await self._until_there_is_news()
            self._wake.clear()
            if is_renewal:
                self._renew_at = asyncio.get_running_loop().time() + RENEW_SECONDS
            accounts = [a for a in self._accounts.values() if a.has_news or is_renewal]
            waiting, self._waiting = self._waiting, []
            try:
                for start in range(0, len(accounts), ACCOUNTS_MAX):
                    await self._exchange(accounts[start : start + ACCOUNTS_MAX])
            finally:
                _let_on(waiting)

    async def _until_there_is_news(self) -> bool:
        """Answers whether to speak of every account: leases want renewal, or the store is tried."""
        if self._is_away:
            await asyncio.sleep(AWAY_SECONDS)
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._renew_at):
                await self._wake.wait()
        return asyncio.get_running_loop().time() >= self._renew_at

    async def _exchange(self, accounts: list[Account]) -> None:
        request = store_pb2.TakeRequest(holder=self._holder, lease_seconds=LEASE_SECONDS)
        for account in accounts:
            takes, slots = account.asks()
            request.takes.extend(takes)
            request.slots.extend(slots)
        allowances = [allowance for account in accounts for allowance in account.allowances]
        slots_of = [account.slots for account in accounts if account.slots is not None]
        sent_at = clock.monotonic()
        try:
            answer = await self._peer.call(self._stub.Take, request, timeout_seconds=CALL_SECONDS)
            _check_shape(answer, len(allowances), len(slots_of))
        except DeepFlowError as error:
            if not self._is_away:
                log.warning("limits are shared out among gateways, the store is away: %s", error)
            self._is_away = True
            for allowance in allowances:
                allowance.no_answer()
            return
        self._is_away = False
        now = clock.monotonic()
        for allowance, taken in zip(allowances, answer.taken, strict=True):
            allowance.answer(taken, answer.window, sent_at + answer.resets_in_seconds, now)
        for places, held in zip(slots_of, answer.held, strict=True):
            places.answer(held, sent_at + LEASE_SECONDS)


def _check_shape(answer: store_pb2.TakeResponse, takes: int, slots: int) -> None:
    if len(answer.taken) != takes or len(answer.held) != slots:
        raise Internal("the kv_store answered another question about limits")


def _let_on(waiting: list[asyncio.Future[None]]) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)
