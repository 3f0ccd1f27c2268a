"""Blocks on disk: a file each, which says whose block it is and proves that it is whole.

    [magic 8][place 8][identity 16][tokens' digest 16][data's length u64][data's xxh3 u64][data]

The place says which share of the block it is: part of how many, stage of how many. What does not
say and prove it all is no block: a file that is short, damaged, foreign or missing is a miss.

Every life of a rank has a folder of its own, which it locks and empties: what an earlier life left
is removed at the start, for a cold start that reads nothing is quicker than one that must check
what it finds, and the index in which the files were known is gone with the process anyway.
"""

import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from deepflow.core.parallel import Layout, Place
from services.task_executor.flowserve.rtc.copies import BlockCopy

_HEADER = struct.Struct("<8s8s16s16sQQ")
_PLACE = struct.Struct("<4H")
_MAGIC = b"DFKVBLK2"
HEADER_BYTES = _HEADER.size
_LOCK = "in-use"
_PREFIX = "life-"
ALONE = Place(Layout(), 0)


class BadBlock(ValueError):
    """The file is not the block that was asked for."""


class DiskBlocks:
    def __init__(self, folder: Path, place: Place = ALONE) -> None:
        """Raises OSError where the folder cannot be had."""
        layout = place.layout
        self._place = _PLACE.pack(place.part, layout.tensor, place.stage, layout.pipeline)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_former_lives(folder)
        with _alone_in(folder):
            prefix = f"{_PREFIX}rank-{place.rank}-"
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
            self._lock = _lock(self.folder)
        assert self._lock is not None, "somebody else locks a folder that was just made"

    def write(self, copy: BlockCopy, data: memoryview) -> None:
        """Raises OSError where the disk does not take it."""
        header = self._header(copy, data)
        with self._path(copy.target_block).open("wb", buffering=0) as file:
            for part in (memoryview(header), data):
                _write_all(file.fileno(), part)

    def read(self, copy: BlockCopy, into: memoryview) -> None:
        """Raises BadBlock or OSError."""
        with self._path(copy.source_block).open("rb", buffering=0) as file:
            header = file.read(HEADER_BYTES)
            if _read_all(file.fileno(), into) != len(into) or file.read(1):
                raise BadBlock("its length is wrong")
        if header != self._header(copy, into):
            raise BadBlock("it is damaged, or another block")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _path(self, block: int) -> Path:
        return self.folder / f"{block}.kv"

    def _header(self, copy: BlockCopy, data: memoryview) -> bytes:
        tokens, checksum = xxh3_128_digest(copy.content), xxh3_64_intdigest(data)
        return _HEADER.pack(_MAGIC, self._place, copy.identity, tokens, len(data), checksum)


def remove_former_lives(folder: Path) -> None:
    """Whoever lives holds a lock, which the kernel drops however he ends."""
    with _alone_in(folder):
        for entry in folder.glob(f"{_PREFIX}*"):
            lock = _lock(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Ranks start at once: a folder that one has made and not yet locked looks like a former life
    to the others."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock; None where somebody else does, or the folder is gone."""
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def _read_all(descriptor: int, into: memoryview) -> int:
    done = 0
    while done < len(into) and (count := os.readv(descriptor, [into[done:]])):
        done += count
    return done
