"""A change that met another one is made again on what that left."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deepflow.errors import Conflict

ATTEMPTS_MAX = 16
# Between two attempts, up to so long at random, so that writers who met once do not meet again.
PAUSE_FIRST_SECONDS = 0.01
PAUSE_MAX_SECONDS = 0.32

_Changed = TypeVar("_Changed")


async def on_the_newest(change: Callable[[], Awaitable[_Changed]]) -> _Changed:
    """`change` reads, and writes on the condition that nobody else has written since.

    Raises Conflict where others were quicker each time, and whatever else it raises.
    """
    for attempt in range(ATTEMPTS_MAX - 1):
        try:
            return await change()
        except Conflict:
            longest = min(PAUSE_MAX_SECONDS, PAUSE_FIRST_SECONDS * 2**attempt)
            await asyncio.sleep(random.uniform(0, longest))
    return await change()
