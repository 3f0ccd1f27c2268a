"""The limiter between requests and the store: one question at a time, and none while it is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deepflow.errors import RateLimited, Unavailable
from deepflow.rpc import Peer
from deepflow.v1 import access_pb2, store_pb2
from services.gateway.limits import limiter
from services.gateway.limits.limiter import Limiter
from tests.servers import until


class FakeStorePeer(Peer):
    """Answers Take as the store does, when it is let; `questions` are all it was asked."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1", "token")
        self.questions: list[store_pb2.TakeRequest] = []
        self.used: dict[str, int] = {}
        self.is_away = False
        self.answers = asyncio.Event()
        self.answers.set()
        self._in_flight = 0

    async def call(self, method: Any, request: Any, **_: Any) -> Any:
        assert self._in_flight == 0, "one question at a time"
        self.questions.append(request)
        self._in_flight += 1
        try:
            await self.answers.wait()
        finally:
            self._in_flight -= 1
        if self.is_away:
            raise Unavailable("away")
        response = store_pb2.TakeResponse(window=1, resets_in_seconds=60.0)
        for take in request.takes:
            used = self.used.get(take.name, 0) + take.charge
            left = max(0, take.limit - used)
            granted = min(take.need, left)
            granted += min(take.ahead, (left - granted) // 16)
            self.used[take.name] = used + granted
            response.taken.add(granted=granted, remaining=max(0, left - granted))
        response.held.extend(min(slot.need, slot.limit) for slot in request.slots)
        return response


@contextlib.asynccontextmanager
async def limiting(peer: FakeStorePeer, gateways: int = 1) -> AsyncIterator[Limiter]:
    running = Limiter("g1", peer, lambda: gateways)
    running.start()
    try:
        yield running
    finally:
        await running.close()
        await peer.close()


def tenant(**limits: int) -> access_pb2.Tenant:
    return access_pb2.Tenant(name="t", **limits)  # type: ignore[arg-type]


async def test_requests_that_come_together_share_a_question() -> None:
    peer = FakeStorePeer()
    async with limiting(peer) as running:
        shop = tenant(requests_per_minute=100, concurrent_requests=100)
        peer.answers.clear()
        asking = [asyncio.create_task(running.admit(shop, 1)) for _ in range(50)]
        await until(lambda: bool(peer.questions), what="the first question")
        peer.answers.set()
        spendings = await asyncio.gather(*asking)
        assert all(spendings)
        assert len(peer.questions) <= 3
        assert peer.used["requests/t"] >= 50


async def test_a_steady_stream_of_requests_seldom_asks() -> None:
    peer = FakeStorePeer()
    async with limiting(peer) as running:
        shop = tenant(requests_per_minute=100_000)
        for _ in range(1000):
            await running.admit(shop, 1)
        assert len(peer.questions) < 50


async def test_a_tenant_without_limits_asks_nothing() -> None:
    peer = FakeStorePeer()
    async with limiting(peer) as running:
        assert await running.admit(tenant(), 10**9) is None
        assert not peer.questions


async def test_while_the_store_is_away_nobody_waits_and_the_share_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "AWAY_SECONDS", 0.01)
    peer = FakeStorePeer()
    peer.is_away = True
    async with limiting(peer, gateways=3) as running:
        shop = tenant(requests_per_minute=30)
        admitted = 0
        for _ in range(30):
            with contextlib.suppress(RateLimited):
                await running.admit(shop, 1)
                admitted += 1
        assert admitted == 10
        peer.is_away = False
        await until(lambda: bool(peer.used), what="the store hears of it")
        charged = sum(take.charge for question in peer.questions for take in question.takes)
        assert charged >= 10 and peer.used["requests/t"] in (10, 11)  # one may be asked ahead


async def test_a_refusal_needs_no_question_once_it_is_known() -> None:
    peer = FakeStorePeer()
    async with limiting(peer) as running:
        shop = tenant(requests_per_minute=2)
        for _ in range(2):
            await running.admit(shop, 1)
        with pytest.raises(RateLimited):
            await running.admit(shop, 1)
        asked = len(peer.questions)
        for _ in range(100):
            with pytest.raises(RateLimited):
                await running.admit(shop, 1)
        assert len(peer.questions) == asked


async def test_who_leaves_while_waiting_takes_nothing() -> None:
    peer = FakeStorePeer()
    async with limiting(peer) as running:
        shop = tenant(concurrent_requests=1)
        peer.answers.clear()
        leaver = asyncio.create_task(running.admit(shop, 1))
        await until(lambda: bool(peer.questions), what="the question")
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        peer.answers.set()
        assert await running.admit(shop, 1) is not None
