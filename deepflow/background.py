"""Tasks that run beside others until they are told to end."""

import asyncio
from typing import Any

AGAIN_SECONDS = 0.5


async def end(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel and wait. What a task ended in is nobody's business any more.

    A cancellation that meets the end of a call may be swallowed (by gRPC, and by wait_for before
    Python 3.12): a task that goes on is told again.
    """
    waiting = {task for task in tasks if task is not None and not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_SECONDS)
