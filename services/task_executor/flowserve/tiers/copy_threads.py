"""Two threads that copy blocks: what somebody waits for never stands behind what is only put away.

A copy that fails is answered as such; the cache then knows that there is nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier
from services.task_executor.flowserve.tiers.base import DeviceBlocks
from services.task_executor.flowserve.tiers.disk_blocks import DiskBlocks
from services.task_executor.flowserve.tiers.dram_blocks import DramBlocks

log = logging.getLogger(__name__)

BATCH_MAX = 16  # copies told of at once: each time costs the master a turn
COMPLAINT_SECONDS = 60.0  # between two log lines about copies that fail
CLOSE_SECONDS_MAX = 5.0  # for a copy that is under way


class CopyThreads:
    def __init__(
        self,
        device: DeviceBlocks,
        dram: DramBlocks | None,
        disk: DiskBlocks | None,
        tell: Callable[[list[CopyDone]], None],
    ) -> None:
        """`tell` is called by the threads, perhaps by both at once."""
        self._device = device
        self._dram = dram
        self._disk = disk
        self._tell = tell
        self._is_closing = False
        self._complained_at: float | None = None
        self._fetching: SimpleQueue[BlockCopy | None] = SimpleQueue()
        self._putting_away: SimpleQueue[BlockCopy | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), name=name, daemon=True)
            for queue, name in ((self._fetching, "kv-fetch"), (self._putting_away, "kv-swap"))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, copies: Sequence[BlockCopy]) -> None:
        for copy in copies:
            is_fetch = copy.target is Tier.DEVICE
            (self._fetching if is_fetch else self._putting_away).put(copy)

    def close(self) -> None:
        """Wait for the copies under way, drop the others, and give the tiers back.

        A thread that a disk does not let go ends with the process, and keeps them.
        """
        self._is_closing = True
        for queue in (self._fetching, self._putting_away):
            queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS_MAX)
        if any(thread.is_alive() for thread in self._threads):
            log.warning("a KV block is still being copied: what it uses is not given back")
            return
        if self._dram is not None:
            self._dram.close()
        if self._disk is not None:
            self._disk.close()

    def _work(self, queue: "SimpleQueue[BlockCopy | None]") -> None:
        staging = memoryview(bytearray(self._device.block_bytes))
        batch: list[CopyDone] = []
        while (copy := queue.get()) is not None and not self._is_closing:
            began = time.monotonic()
            is_good = self._try(copy, staging)
            if self._is_closing:  # nobody is left to be told, nor what they were told through
                return
            batch.append(CopyDone(copy.number, is_good, time.monotonic() - began))
            if queue.empty() or len(batch) == BATCH_MAX:
                self._tell(batch)
                batch = []

    def _try(self, copy: BlockCopy, staging: memoryview) -> bool:
        try:
            self._copy(copy, staging)
        except Exception as error:
            self._complain(copy, error)
            return False
        return True

    def _copy(self, copy: BlockCopy, staging: memoryview) -> None:
        """Into the target's memory or out of the source's, where one of them has some."""
        if copy.target is Tier.DRAM:
            self._read(copy, self._view(copy.target_block))
        elif copy.source is Tier.DRAM:
            self._write(copy, self._view(copy.source_block))
        else:
            self._read(copy, staging)
            self._write(copy, staging)

    def _view(self, block: int) -> memoryview:
        assert self._dram is not None, "a copy names a tier that is not there"
        return self._dram.view(block)

    def _read(self, copy: BlockCopy, into: memoryview) -> None:
        if copy.source is Tier.DEVICE:
            self._device.read(copy.source_block, into)
        else:
            assert self._disk is not None, "a copy names a tier that is not there"
            self._disk.read(copy, into)

    def _write(self, copy: BlockCopy, data: memoryview) -> None:
        if copy.target is Tier.DEVICE:
            self._device.write(copy.target_block, data)
        else:
            assert self._disk is not None, "a copy names a tier that is not there"
            self._disk.write(copy, data)

    def _complain(self, copy: BlockCopy, error: Exception) -> None:
        now = time.monotonic()
        if self._complained_at is not None and now - self._complained_at < COMPLAINT_SECONDS:
            return
        self._complained_at = now
        source, target = copy.source.name, copy.target.name
        log.warning("a KV block could not be copied from %s to %s: %s", source, target, str(error))
