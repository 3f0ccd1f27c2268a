"""Copies beside the steps: real memory, real files, a device that a test can hold up or break."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.task_executor.flowserve.ring import wait_readable
from services.task_executor.flowserve.rtc.copies import BlockCopy, CopyDone, Tier
from services.task_executor.flowserve.tiers import copy_threads
from services.task_executor.flowserve.tiers.copy_threads import CopyThreads
from services.task_executor.flowserve.tiers.disk_blocks import DiskBlocks
from services.task_executor.flowserve.tiers.dram_blocks import DramBlocks
from services.task_executor.flowserve.tiers.mover import ThreadedMover

SIZE, BLOCKS = 64, 8
BROKEN = 7
DEADLINE_SECONDS = 60


class FakeDevice:
    block_bytes = SIZE

    def __init__(self) -> None:
        self.blocks = [bytearray([block] * SIZE) for block in range(BLOCKS)]
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_asked = threading.Event()

    def read(self, block: int, into: memoryview) -> None:
        self.is_asked.set()
        assert self.may_read.wait(DEADLINE_SECONDS)
        if block == BROKEN:
            raise RuntimeError("the link is down")
        into[:] = self.blocks[block]

    def write(self, block: int, data: memoryview) -> None:
        self.blocks[block][:] = data


class Stand:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = FakeDevice()
        dram, disk = DramBlocks(BLOCKS, SIZE), DiskBlocks(folder)
        self.mover = ThreadedMover(self.device, dram, disk)
        self.numbers = 0

    def begin(self, source: Tier, source_block: int, target: Tier, target_block: int) -> int:
        self.numbers += 1
        copy = BlockCopy(
            self.numbers, source, source_block, target, target_block, b"i" * 16, b"tokens"
        )
        self.mover.submit([copy])
        return self.numbers

    def await_done(self, count: int) -> list[CopyDone]:
        done: list[CopyDone] = []
        while len(done) < count:
            assert wait_readable(self.mover.wake_fds, DEADLINE_SECONDS)
            done += self.mover.take_done()
        assert not wait_readable(self.mover.wake_fds, 0), "it would wake somebody for nothing"
        return done

    def copy(self, source: Tier, source_block: int, target: Tier, target_block: int) -> bool:
        number = self.begin(source, source_block, target, target_block)
        (done,) = self.await_done(1)
        assert done.number == number and done.seconds >= 0
        return done.is_good


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.device.may_read.set()
    stand.mover.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "way",
    [
        [Tier.DRAM],
        [Tier.DISK],
        [Tier.DRAM, Tier.DISK],
    ],
)
def test_a_block_comes_back_as_it_went(stand: Stand, way: list[Tier]) -> None:
    here, block = Tier.DEVICE, 3
    for there in way:
        assert stand.copy(here, block, there, 5)
        here, block = there, 5
    assert stand.copy(here, block, Tier.DEVICE, 1)
    assert stand.device.blocks[1] == bytes([3] * SIZE)


def test_a_copy_that_fails_says_so_and_the_next_goes_on(stand: Stand) -> None:
    assert not stand.copy(Tier.DEVICE, BROKEN, Tier.DRAM, 0)
    assert not stand.copy(Tier.DISK, 2, Tier.DEVICE, 1)
    assert stand.device.blocks[1] == bytes([1] * SIZE)
    assert stand.copy(Tier.DEVICE, 2, Tier.DRAM, 0)


def test_a_fetch_does_not_stand_behind_what_is_put_away(stand: Stand) -> None:
    assert stand.copy(Tier.DEVICE, 4, Tier.DRAM, 0)
    stand.device.may_read.clear()
    slow = [stand.begin(Tier.DEVICE, 2, Tier.DISK, block) for block in range(3)]
    assert stand.copy(Tier.DRAM, 0, Tier.DEVICE, 6)
    stand.device.may_read.set()
    done = stand.await_done(3)
    assert [it.number for it in done] == slow and all(it.is_good for it in done)


def test_it_closes_with_copies_under_way(stand: Stand) -> None:
    for block in range(6):
        stand.begin(Tier.DEVICE, block, Tier.DRAM, block)


def test_a_copy_that_ends_after_the_close_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would be told through is closed, and may be somebody else's by then."""
    monkeypatch.setattr(copy_threads, "CLOSE_SECONDS_MAX", 0.01)
    device, told = FakeDevice(), list[CopyDone]()
    device.may_read.clear()
    dram, disk = DramBlocks(BLOCKS, SIZE), DiskBlocks(tmp_path)
    threads = CopyThreads(device, dram, disk, told.extend)
    monkeypatch.setattr(copy_threads, "BATCH_MAX", 1)
    threads.submit([BlockCopy(1, Tier.DEVICE, 1, Tier.DRAM, 1, b"i" * 16, b"tokens")])
    assert device.is_asked.wait(DEADLINE_SECONDS)
    threads.close()
    device.may_read.set()
    for thread in threads._threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
    assert not told
    threads.close()  # now that nobody copies, everything is given back
    assert not list(tmp_path.glob("life-*"))
