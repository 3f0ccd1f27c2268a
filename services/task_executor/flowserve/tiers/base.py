"""What the master asks of a rank's tiers, and what these ask of the device."""

from collections.abc import Sequence
from typing import Protocol

from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone


class DeviceBlocks(Protocol):
    """The KV blocks of one device as bytes on the host; called by threads of the tiers.

    Returns when the bytes are where they belong. The steps go on meanwhile.
    """

    block_bytes: int  # that one block takes on the host

    def read(self, block: int, into: memoryview) -> None: ...

    def write(self, block: int, data: memoryview) -> None: ...


class TierMover(Protocol):
    """Does copies beside the steps. Two that it has at a time never touch the same target, nor
    one's target the other's source: the cache sees to that."""

    @property
    def wake_fds(self) -> Sequence[int]:
        """Readable when a copy has ended."""

    def submit(self, copies: Sequence[BlockCopy]) -> None: ...

    def take_done(self) -> list[CopyDone]:
        """Those that ended since the last call, without waiting."""

    def close(self) -> None:
        """Wait for the copy under way, drop the others, and give everything back."""
