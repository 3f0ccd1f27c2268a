import asyncio
import contextlib

from deepflow.background import end


async def test_a_task_that_swallows_its_cancellation_ends_all_the_same() -> None:
    started = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            started.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await started.wait()
    await end(task, None)
    assert task.cancelled()


async def test_what_a_task_failed_with_is_left_alone() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    await end(task)
    assert isinstance(task.exception(), ValueError)
