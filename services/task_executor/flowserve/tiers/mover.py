"""The TierMover of an engine of one rank, and rank 0's own part of one of several."""

import os
import threading
from collections.abc import Sequence

from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone
from services.task_executor.flowserve.tiers.base import DeviceBlocks
from services.task_executor.flowserve.tiers.copy_threads import CopyThreads
from services.task_executor.flowserve.tiers.disk_blocks import DiskBlocks
from services.task_executor.flowserve.tiers.dram_blocks import DramBlocks


class ThreadedMover:
    def __init__(
        self, device: DeviceBlocks, dram: DramBlocks | None, disk: DiskBlocks | None
    ) -> None:
        self._done: list[CopyDone] = []
        self._lock = threading.Lock()  # so that the descriptor is readable where something is done
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads = CopyThreads(device, dram, disk, self._tell)

    @property
    def wake_fds(self) -> tuple[int, ...]:
        return (self._wake_fd,)

    def submit(self, copies: Sequence[BlockCopy]) -> None:
        self._threads.submit(copies)

    def take_done(self) -> list[CopyDone]:
        with self._lock:
            done, self._done = self._done, []
            if done:
                os.eventfd_read(self._wake_fd)
        return done

    def close(self) -> None:
        self._threads.close()
        os.close(self._wake_fd)

    def _tell(self, batch: list[CopyDone]) -> None:
        with self._lock:
            self._done += batch
            os.eventfd_write(self._wake_fd, 1)
