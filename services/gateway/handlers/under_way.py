"""The requests that are being answered."""

import asyncio
import contextlib
from collections.abc import Iterator

from deepflow.errors import Unavailable
from services.gateway.catalog import RETRY_AFTER_SECONDS


class UnderWay:
    """Counted over all routes that make jobs: their bound is one, and a drain waits for all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Raises Unavailable where there are too many already."""
        if self.count >= self._most:
            raise Unavailable(
                "too many requests are running; try again in a moment",
                reason="overloaded",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self.count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self.idle.set()
