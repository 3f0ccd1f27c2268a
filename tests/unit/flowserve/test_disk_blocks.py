"""A file is a block only where it proves to be whole and the one that was asked for."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepflow.core.parallel import Layout, Place
from services.task_executor.flowserve.rtc.copies import BlockCopy, Tier
from services.task_executor.flowserve.tiers.disk_blocks import HEADER_BYTES, BadBlock, DiskBlocks
from services.task_executor.flowserve.tiers.disk_folder import usual_folder

SIZE = 1000
DATA = os.urandom(SIZE)


def copy_of(block: int, identity: bytes = b"i" * 16, content: bytes = b"tokens") -> BlockCopy:
    return BlockCopy(1, Tier.DISK, block, Tier.DISK, block, identity, content)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskBlocks]:
    disk = DiskBlocks(tmp_path / "kv")
    disk.write(copy_of(7), memoryview(DATA))
    yield disk
    disk.close()


def read(disk: DiskBlocks, copy: BlockCopy) -> bytes:
    into = bytearray(SIZE)
    disk.read(copy, memoryview(into))
    return bytes(into)


def path(disk: DiskBlocks) -> Path:
    return disk.folder / "7.kv"


def test_what_was_written_is_read(disk: DiskBlocks) -> None:
    assert read(disk, copy_of(7)) == DATA


def test_a_file_takes_another_block_when_it_is_written_again(disk: DiskBlocks) -> None:
    disk.write(copy_of(7, b"j" * 16), memoryview(DATA[::-1]))
    assert read(disk, copy_of(7, b"j" * 16)) == DATA[::-1]
    assert path(disk).stat().st_size == HEADER_BYTES + SIZE


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda it: b"",
    "header only": lambda it: it[:HEADER_BYTES],
    "cut header": lambda it: it[:20],
    "one byte short": lambda it: it[:-1],
    "one byte long": lambda it: it + b"\0",
    "one bit of the data": lambda it: it[:-1] + bytes([it[-1] ^ 1]),
    "one bit of the identity": lambda it: it[:16] + bytes([it[16] ^ 1]) + it[17:],
    "one bit of the place": lambda it: it[:8] + bytes([it[8] ^ 1]) + it[9:],
    "one bit of the checksum": lambda it: it[: HEADER_BYTES - 1] + b"\0" + it[HEADER_BYTES:],
    "zeros": lambda it: bytes(len(it)),
    "another magic": lambda it: b"DFKVBLK0" + it[8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_no_block(disk: DiskBlocks, damage: str) -> None:
    whole = path(disk).read_bytes()
    damaged = DAMAGES[damage](whole)
    path(disk).write_bytes(damaged if damaged != whole else whole[:-2] + b"??")
    with pytest.raises(BadBlock):
        read(disk, copy_of(7))


def test_another_block_is_not_the_one_that_was_asked_for(disk: DiskBlocks) -> None:
    for other in (copy_of(7, identity=b"x" * 16), copy_of(7, content=b"forged")):
        with pytest.raises(BadBlock):
            read(disk, other)


def test_another_ranks_share_is_not_ones_own(disk: DiskBlocks, tmp_path: Path) -> None:
    for place in (Place(Layout(2, 1), 0), Place(Layout(1, 2), 0), Place(Layout(2, 1), 1)):
        other = DiskBlocks(tmp_path / "kv", place)
        (other.folder / "7.kv").write_bytes(path(disk).read_bytes())
        with pytest.raises(BadBlock):
            read(other, copy_of(7))
        other.close()


def test_many_that_start_at_once_leave_one_another_alone(tmp_path: Path) -> None:
    places = Layout(4, 4).places
    with ThreadPoolExecutor(len(places)) as pool:
        ranks = list(pool.map(lambda place: DiskBlocks(tmp_path, place), places))
    assert all(rank.folder.is_dir() for rank in ranks)
    for rank in ranks:
        rank.close()
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_no_block(disk: DiskBlocks) -> None:
    with pytest.raises(OSError, match="No such file"):
        read(disk, copy_of(8))


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    disk = DiskBlocks(tmp_path)
    disk.write(copy_of(1), memoryview(DATA))
    assert list(tmp_path.iterdir())
    disk.close()
    assert not list(tmp_path.iterdir())


def test_a_former_life_is_removed_and_a_present_one_is_not(tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path;"
        "from services.task_executor.flowserve.tiers.disk_blocks import DiskBlocks;"
        "DiskBlocks(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    alive = DiskBlocks(tmp_path)
    alive.write(copy_of(1), memoryview(DATA))
    other = DiskBlocks(tmp_path)
    assert not left.exists()
    assert read(alive, copy_of(1)) == DATA
    alive.close()
    other.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("removed", ["its own", "the one around it"])
def test_a_folder_that_was_removed_is_made_again(
    tmp_path: Path, removed: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskBlocks(tmp_path / "kv")
    disk.write(copy_of(7), memoryview(DATA))
    former = disk.folder
    shutil.rmtree(former if removed == "its own" else former.parent)
    with pytest.raises(OSError, match="No such file"):
        read(disk, copy_of(7))
    assert not caplog.records, "what cannot be read is only a miss"
    for block in (8, 9):
        disk.write(copy_of(block), memoryview(DATA))
        assert read(disk, copy_of(block)) == DATA
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{former} was removed" in record.message and str(disk.folder) in record.message
    assert [it.stat().st_mode & 0o777 for it in (disk.folder, disk.folder.parent)] == [0o700] * 2
    other = DiskBlocks(tmp_path / "kv")  # which removes what is nobody's
    assert read(disk, copy_of(8)) == DATA
    other.close()
    disk.close()
    assert not list((tmp_path / "kv").iterdir())


def test_what_somebody_else_puts_in_the_place_of_a_removed_folder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where all users share what is around it; the next copy tries again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk = DiskBlocks(usual_folder())
    shutil.rmtree(usual_folder())
    (tmp_path / "elsewhere").mkdir()
    usual_folder().symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(PermissionError, match="belongs to somebody else"):
            disk.write(copy_of(7), memoryview(DATA))
    assert not list((tmp_path / "elsewhere").iterdir())
    usual_folder().unlink()
    disk.write(copy_of(7), memoryview(DATA))
    assert read(disk, copy_of(7)) == DATA
    disk.close()


def test_a_full_disk_costs_the_blocks_that_it_does_not_take(disk: DiskBlocks) -> None:
    (disk.folder / "8.kv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        disk.write(copy_of(8), memoryview(DATA))
    assert not os.path.lexists(disk.folder / "8.kv"), "a part of a block takes room for nothing"
    assert read(disk, copy_of(7)) == DATA
    disk.write(copy_of(8), memoryview(DATA))
    assert read(disk, copy_of(8)) == DATA
