"""Work off the loop: bounded in number and in time."""

import asyncio
import threading

import pytest

from deepflow.errors import InvalidRequest, Unavailable
from services.job_executor.tokenizer.pool import WorkPool


def spin() -> None:
    while True:
        pass


async def test_work_that_takes_too_long_is_interrupted_and_frees_its_thread() -> None:
    pool = WorkPool(threads=1, queue_max=4, seconds_max=0.1)
    with pytest.raises(InvalidRequest) as caught:
        await pool.run(spin, param="messages")
    assert (caught.value.reason, caught.value.param) == ("prompt_timeout", "messages")
    assert await pool.load(lambda: 42) == 42
    assert pool.num_pending == 0
    pool.close()


async def test_more_work_than_may_wait_is_refused() -> None:
    pool = WorkPool(threads=1, queue_max=0, seconds_max=60)
    gate = threading.Event()
    first = pool.load(gate.wait)
    running = asyncio.create_task(pool.run(lambda: 1))
    await asyncio.sleep(0)  # one turn of the loop: it waits for the thread now
    assert pool.num_pending == 1
    with pytest.raises(Unavailable) as caught:
        await pool.run(lambda: 2)
    assert caught.value.retry_after_seconds > 0
    gate.set()
    assert await running == 1
    assert await first
    pool.close()


async def test_work_that_waited_too_long_is_our_fault() -> None:
    pool = WorkPool(threads=1, queue_max=4, seconds_max=0.05)
    gate = threading.Event()
    blocker = pool.load(gate.wait)
    with pytest.raises(Unavailable):
        await pool.run(lambda: 1)
    gate.set()
    await blocker
    pool.close()
