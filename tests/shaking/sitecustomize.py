"""`make test-shaken`: everything that may come late, comes late at random, in every process.

Python imports this file by itself wherever this folder is on PYTHONPATH, so services that a test
starts are shaken with it. What is delayed is what a busy machine or a network delays: a thread's
first step, a call and its answer, a message or an event on its way, a sleeper's waking. Nothing is
lost, and what asyncio, gRPC and NATS promise of order stays true. A test that fails here and not
otherwise counted on who comes first, or the product did.
"""

import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

SEED = "SHAKE_SEED"

Function = Callable[..., Any]

SELDOM, SELDOM_SECONDS_MAX = 0.04, 0.4
OFTEN, OFTEN_SECONDS_MAX = 0.20, 0.03
SLEEPERS, OVERSLEPT_SECONDS_MAX = 0.20, 0.07


class Shaker:
    """Draws the delays of one process; the same seed draws others in every process."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(f"{seed} {os.getpid()}")
        self._sleep = asyncio.sleep
        self._run_thread = threading.Thread.run

    def seconds(self) -> float:
        chance = self._draw.random()
        if chance < SELDOM:
            return self._draw.uniform(0, SELDOM_SECONDS_MAX)
        return self._draw.uniform(0, OFTEN_SECONDS_MAX) if chance < OFTEN else 0.0

    async def pause(self) -> None:
        if seconds := self.seconds():
            await self._sleep(seconds)

    async def sleep(self, delay: float, result: Any = None) -> Any:
        if delay > 0 and self._draw.random() < SLEEPERS:
            delay += self._draw.uniform(0, OVERSLEPT_SECONDS_MAX)
        return await self._sleep(delay, result)

    def run_thread(self, thread: threading.Thread) -> None:
        time.sleep(self.seconds())
        self._run_thread(thread)

    def late(self, function: Function, *, answers_late: bool = False) -> Function:
        """`function`, which then begins late, and whose answer is heard late, too, where asked."""

        async def shaken(*values: Any, **named: Any) -> Any:
            await self.pause()
            answer = await function(*values, **named)
            if answers_late:
                await self.pause()
            return answer

        return shaken

    def shake_rpc(self, rpc: Any) -> None:
        rpc.Peer.call = self.late(rpc.Peer.call, answers_late=True)
        rpc._Guard.intercept_service = self.late(rpc._Guard.intercept_service)

    def shake_streams(self, calls: Any) -> None:
        stream = calls._StreamResponseMixin
        stream._read = self.late(stream._read)

    def shake_bus(self, bus: Any) -> None:
        bus.Bus.publish = self.late(bus.Bus.publish)
        subscribe = bus.Bus.subscribe

        async def shaken(own: Any, subject: str, kind: type, handler: Function) -> None:
            await subscribe(own, subject, kind, self.late(handler))

        bus.Bus.subscribe = shaken

    def shake_redis(self, client: Any) -> None:
        command = client.Redis.execute_command
        client.Redis.execute_command = self.late(command, answers_late=True)

    def shake_httpx(self, client: Any) -> None:
        client.AsyncClient.send = self.late(client.AsyncClient.send, answers_late=True)


class Finder(importlib.abc.MetaPathFinder):
    """Shakes a module as soon as somebody has imported it."""

    def __init__(self, shakes: dict[str, Callable[[Any], None]]) -> None:
        self._shakes = shakes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        shake = self._shakes.pop(name, None)  # once: find_spec below asks here again
        spec = importlib.util.find_spec(name) if shake is not None else None
        if shake is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_shake(module: ModuleType) -> None:
            execute(module)
            shake(module)

        spec.loader.exec_module = execute_and_shake  # type: ignore[method-assign]
        return spec


def shake_this_process(seed: int) -> None:
    shaker = Shaker(seed)

    def run(self: threading.Thread) -> None:
        shaker.run_thread(self)

    asyncio.sleep = asyncio.tasks.sleep = shaker.sleep
    threading.Thread.run = run  # type: ignore[method-assign]
    shakes = {
        "deepflow.rpc": shaker.shake_rpc,
        "grpc.aio._call": shaker.shake_streams,
        "deepflow.bus": shaker.shake_bus,
        "redis.asyncio.client": shaker.shake_redis,
        "httpx._client": shaker.shake_httpx,
    }
    sys.meta_path.insert(0, Finder(shakes))


if os.environ.get(SEED):
    shake_this_process(int(os.environ[SEED]))
